"""random-LTD: each middle layer computes on a random subset of the tokens, growing to all of them.

Layer l keeps K(t) tokens of each sample, drawn uniformly without replacement for each sample and layer; the others skip
the layer unchanged. K grows linearly from ``--ltd-min-kept-tokens`` to the sequence length over ``--ltd-growth-steps``,
or follows another schedule of ``methods.schedule_flags``.
Yao et al., "Random-LTD: Random and Layerwise Token Dropping" (arXiv:2211.11586).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.flags.ranges import count_in
from megatron.ltd.format import format_ranges
from megatron.ltd.methods.base import METHOD, ModelFacts, Samples
from megatron.ltd.methods.schedule_choice import FollowsSchedule, ScheduleChoice
from megatron.ltd.methods.schedule_flags import ScheduleFlags
from megatron.ltd.schedules.kept_tokens import TokenSchedule
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RandomLTDConfig(ScheduleFlags, prefix="ltd", kept="min_kept_tokens", kind="growing", kept_part=4):
    """random-LTD (random layerwise token dropping)"""

    random_ltd: bool = flag(
        False, affects="schedule", help="compute the middle layers on a random subset of the tokens"
    )
    ltd_layers: str | None = flag(
        None,
        affects="schedule",
        metavar="LIST",
        help='layers that drop tokens, 1-based, as "2-23" or "2,4,6-8" (default: all but the first and the last)',
    )
    ltd_allow_edge_layers: bool = flag(
        False, affects="schedule", help="let --ltd-layers include the first and the last layer"
    )

    @property
    def enabled(self) -> bool:
        return self.random_ltd


def parse_layers(text: str, num_layers: int, allow_edge_layers: bool) -> tuple[int, ...]:
    """The layer numbers of a list such as ``"2-4,7"``, ascending. Raises ``UserError`` if one is outside the model."""
    layers: set[int] = set()
    for part in text.split(","):
        first, last = (count_in(number) for number in part.strip().partition("-")[::2])
        if first is None or (last is None and "-" in part):
            raise UserError(f'--ltd-layers {text}: "{part.strip()}" must be a layer, or a range such as 2-23')
        end = min(first if last is None else last, max(first, num_layers + 1))  # one layer too many is enough
        layers.update(range(first, end + 1))
    outside = sorted(layer for layer in layers if not 1 <= layer <= num_layers)
    if outside or not layers:
        problem = f"{outside[0]} is not a layer" if outside else "the list is empty"
        raise UserError(f"--ltd-layers {text}: {problem}; give numbers from 1 to --num-layers {num_layers}")
    edges = sorted(layers & {1, num_layers})
    if edges and not allow_edge_layers:
        raise UserError(
            f"--ltd-layers {text}: layer {edges[0]} is the {'first' if edges[0] == 1 else 'last'} layer, in which "
            "random-LTD keeps every token; remove it, or add --ltd-allow-edge-layers"
        )
    return tuple(sorted(layers))


@dataclass(frozen=True)
class RandomLTD(FollowsSchedule):
    """The schedule of kept tokens, the layers that drop tokens, and the draw."""

    title: ClassVar[str] = "random-LTD"

    facts: ModelFacts
    schedule: TokenSchedule
    layers: frozenset[int]
    choice: ScheduleChoice

    @classmethod
    def build(cls, config: RandomLTDConfig, facts: ModelFacts) -> RandomLTD:
        """Check the flags against the model. Raises ``UserError``."""
        choice = config.schedule_choice(facts)
        if config.ltd_layers is None and facts.num_layers < 3:
            raise UserError(
                f"--num-layers {facts.num_layers}: --random-ltd drops no tokens in the first and the last layer, so "
                "no layer is left; use at least 3 layers, or --ltd-layers with --ltd-allow-edge-layers"
            )
        layers = parse_layers(
            config.ltd_layers or f"2-{facts.num_layers - 1}", facts.num_layers, config.ltd_allow_edge_layers
        )
        return cls(facts, choice.build(facts), frozenset(layers), choice)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The schedule, the layers that drop tokens, and the strata and blocks of the draw."""
        return {
            METHOD: "random_ltd",
            **self.choice.settings,
            "ltd_layers": format_ranges(sorted(self.layers)),
        }

    def select(self, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int) -> Tensor:
        """A separate draw for each sample and layer."""
        from megatron.ltd.routing.sampling import kept_by_layers  # imports torch, which plans do not need

        facts, choice = self.facts, self.choice
        drawn = (layer_numbers, facts.seq_length, kept_tokens, choice.strata, choice.block_size)
        return kept_by_layers(facts.seed, samples.sample_ids_B, *drawn, facts.kernels)

    def plan_with(self, kept_tokens: int) -> StepPlan:
        num_layers, seq_length = self.facts.num_layers, self.facts.seq_length
        kept = (kept_tokens if layer in self.layers else seq_length for layer in range(1, num_layers + 1))
        return StepPlan(seq_length, tuple(kept), self._always)

    @cached_property
    def _always(self) -> tuple[float, ...]:
        return (1.0,) * self.facts.num_layers
