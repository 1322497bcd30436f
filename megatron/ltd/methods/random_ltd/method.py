"""random-LTD: each middle layer computes on a random subset of the tokens, growing to all of them.

Layer l keeps K(t) tokens of each sample, drawn uniformly without replacement for each sample and layer; the others skip
the layer unchanged. K grows linearly from ``--ltd-min-kept-tokens`` to the sequence length over ``--ltd-growth-steps``,
or follows another schedule (``methods.schedule_flags``).
Yao et al., "Random-LTD: Random and Layerwise Token Dropping" (arXiv:2211.11586).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag
from megatron.ltd.format import format_ranges
from megatron.ltd.methods.base import METHOD, Method, ModelFacts, Samples
from megatron.ltd.methods.schedule_flags import KINDS, ScheduleFlags, in_blocks
from megatron.ltd.schedules.kept_tokens import TokenSchedule
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULT_KEPT_TOKENS = 128


@dataclass(frozen=True)
class RandomLTDConfig:
    """random-LTD (random layerwise token dropping)"""

    random_ltd: bool = flag(
        False, affects="schedule", help="compute the middle layers on a random subset of the tokens"
    )
    ltd_schedule: str = flag(
        "growing",
        affects="schedule",
        choices=KINDS,
        help="how kept tokens go on: from the fewest to all, as many, back, or as stages say",
    )
    ltd_min_kept_tokens: int | None = flag(
        None,
        affects="schedule",
        help="kept tokens of a sample at step 0; of a shrinking schedule, at the end; of a constant one, always "
        f"(default: {_DEFAULT_KEPT_TOKENS})",
    )
    ltd_growth_steps: int | None = flag(
        None,
        affects="schedule",
        help="steps until every token is kept, or the fewest where they shrink; required with these two schedules",
    )
    ltd_granularity: int = flag(
        16,
        affects="schedule",
        help="kept tokens that change are a multiple of this (on GPUs a multiple of 8 is fastest)",
    )
    ltd_stages: tuple[str, ...] = flag(
        (),
        affects="schedule",
        metavar="STEP:KEPT",
        help="of a staged schedule: kept tokens from each of these 0-based steps on",
    )
    ltd_block_size: int = flag(
        1, affects="schedule", help="draw blocks of this many neighbouring tokens (1: single tokens, as in the paper)"
    )
    ltd_layers: str | None = flag(
        None,
        affects="schedule",
        metavar="LIST",
        help='layers that drop, 1-based, as "2-23" or "2,4,6-8" (default: all but first and last)',
    )
    ltd_allow_edge_layers: bool = flag(
        False, affects="schedule", help="let --ltd-layers name the first and the last layer"
    )
    ltd_strata: int = flag(
        1, affects="schedule", help="cut the sequence in this many equal runs, each keeping its share of the tokens"
    )

    @property
    def enabled(self) -> bool:
        return self.random_ltd

    @property
    def grows(self) -> bool:
        """Whether kept tokens grow, over ``ltd_growth_steps``."""
        return self.ltd_schedule == "growing"

    @property
    def schedule_flags(self) -> ScheduleFlags:
        """The schedule that is asked for, under this method's names."""
        return ScheduleFlags(
            prefix="--ltd",
            kept_flag="--ltd-min-kept-tokens",
            kind=self.ltd_schedule,
            kept_tokens=self.ltd_min_kept_tokens,
            default_kept_tokens=_DEFAULT_KEPT_TOKENS,
            growth_steps=self.ltd_growth_steps,
            granularity=self.ltd_granularity,
            stages=self.ltd_stages,
            strata=self.ltd_strata,
            block_size=self.ltd_block_size,
        )


def parse_layers(text: str, num_layers: int, allow_edge_layers: bool) -> tuple[int, ...]:
    """Layer numbers of a list such as ``"2-4,7"``, ascending. Raises ``UserError`` for numbers outside the model."""
    layers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise UserError(f'--ltd-layers is "{text}": "{part.strip()}" is neither a number nor a range such as 2-23')
        end = min(int(last or first), max(int(first), num_layers + 1))  # one layer beyond is enough to refuse it
        layers.update(range(int(first), end + 1))
    outside = sorted(layer for layer in layers if not 1 <= layer <= num_layers)
    if outside or not layers:
        raise UserError(
            f'--ltd-layers is "{text}": layers go from 1 to --num-layers {num_layers}'
            + (f", and {outside[0]} is outside" if outside else ", and the list is empty")
        )
    edges = sorted(layers & {1, num_layers})
    if edges and not allow_edge_layers:
        raise UserError(
            f'--ltd-layers is "{text}": layer {edges[0]} is the {"first" if edges[0] == 1 else "last"} layer, which '
            "random-LTD "
            "keeps full; leave it out, or add --ltd-allow-edge-layers"
        )
    return tuple(sorted(layers))


@dataclass(frozen=True)
class RandomLTD(Method):
    """The schedule of kept tokens, the layers that follow it, and the draw."""

    title: ClassVar[str] = "random-LTD"

    facts: ModelFacts
    schedule: TokenSchedule
    layers: frozenset[int]
    config: RandomLTDConfig

    @classmethod
    def build(cls, config: RandomLTDConfig, facts: ModelFacts) -> RandomLTD:
        """Check the flags against the model. Raises ``UserError``."""
        if config.ltd_schedule == "growing" and config.ltd_growth_steps is None:
            raise UserError(
                "--ltd-growth-steps is missing: --random-ltd needs the number of steps until every token is kept; "
                "about 0.78 of the run saves a third of the compute"
            )
        if config.ltd_layers is None and facts.num_layers < 3:
            raise UserError(
                f"--random-ltd keeps the first and the last layer full, and --num-layers {facts.num_layers} has none "
                "between: "
                "use at least 3 layers, or name them with --ltd-layers and --ltd-allow-edge-layers"
            )
        layers = parse_layers(
            config.ltd_layers or f"2-{facts.num_layers - 1}", facts.num_layers, config.ltd_allow_edge_layers
        )
        return cls(facts, config.schedule_flags.build(facts), frozenset(layers), config)

    @property
    def name(self) -> str:
        """With the size of the blocks, where tokens come in such."""
        return f"{self.title}{in_blocks(self.config.ltd_block_size)}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The schedule, the layers that follow it, and the strata and blocks of the draw."""
        return {
            METHOD: "random_ltd",
            **self.config.schedule_flags.settings,
            "ltd_layers": format_ranges(sorted(self.layers)),
        }

    def plan(self, step: int) -> StepPlan:
        return self._plan(self.schedule.at(step))

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        for first_step, steps, kept_tokens in self.schedule.stages(num_steps):
            yield first_step, steps, self._plan(kept_tokens)

    def select(self, samples: Samples, layer_number: int, kept_tokens: int) -> Tensor:
        """A draw of its own for each sample and layer."""
        from megatron.ltd.routing.sampling import kept_indices  # imports torch, which plans do not need

        seed, seq_length, config = self.facts.seed, self.facts.seq_length, self.config
        strata, block_size = config.ltd_strata, config.ltd_block_size
        return kept_indices(seed, samples.ids_B, layer_number, seq_length, kept_tokens, strata, block_size)

    def _plan(self, kept_tokens: int) -> StepPlan:
        num_layers, seq_length = self.facts.num_layers, self.facts.seq_length
        kept = (kept_tokens if layer in self.layers else seq_length for layer in range(1, num_layers + 1))
        return StepPlan(seq_length, tuple(kept), (1.0,) * num_layers)
