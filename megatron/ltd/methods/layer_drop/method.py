"""Progressive layer dropping (PLD): layers are skipped at random, deeper ones more often.

    x ── gate closed ───────────────────────────────► x
    x ── gate open ──► x + Attn(LN x)/p = h ── h + MLP(LN h)/p ──►

Each layer has one gate per microbatch, shared by both sublayers, which is open with probability p. theta(t) changes
during the run, and p falls from 1 to theta(t) with depth. In evaluation every layer is computed, unscaled.

Zhang and He, "Accelerating Training of Transformer-Based Language Models with Progressive Layer Dropping" (2020). The
paper's p falls with l/L; its published code samples with (l-1)/L, so that the first layer always runs, and scales by
the next layer's p. Both ways to sample are there; this code scales by the layer's own p.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import Range
from megatron.ltd.methods.base import METHOD, Method, ModelFacts
from megatron.ltd.schedules.keep_probability import KeepProbabilitySchedule, keep_probabilities
from megatron.ltd.schedules.step_plan import StepPlan

_UNIT = 1000
"""theta is rounded to thousandths, so that a run has a few hundred stages of equal steps."""

_PAPERS_RATE = 100.0
"""gamma times the steps of the run."""


@dataclass(frozen=True)
class LayerDropConfig(Settings):
    """progressive layer dropping"""

    layer_drop: bool = flag(False, affects="schedule", help="skip layers at random, deeper ones more often")
    layer_drop_theta: float = flag(
        0.5,
        range=Range(0, 1, above=True),
        affects="schedule",
        help="the smallest keep probability of the deepest layer",
    )
    layer_drop_gamma: float | None = flag(
        None,
        affects="schedule",
        help="rate of change of theta per step (default: 100 / steps of the run, as in the paper)",
    )
    layer_drop_direction: str = flag(
        "falling",
        affects="schedule",
        choices=("falling", "rising"),
        help="theta falls from 1 (the paper) or rises to 1 (dropping early)",
    )
    layer_drop_by_depth: str = flag(
        "linear",
        affects="schedule",
        choices=("linear", "released", "uniform", "exponential"),
        help="keep probability of layer l of L: 1 - l/L (1 - theta) (the paper), 1 - (l-1)/L (1 - theta) (its released "
        "code), theta, or theta^(l/L)",
    )

    @property
    def enabled(self) -> bool:
        return self.layer_drop

    @property
    def follows_length(self) -> bool:
        """Whether gamma follows from the length of the run."""
        return self.layer_drop_gamma is None


@dataclass(frozen=True)
class LayerDrop(Method):
    """The schedule of keep probabilities, and the gates."""

    facts: ModelFacts
    schedule: KeepProbabilitySchedule
    by_depth: str
    name: str = "layer dropping"

    @classmethod
    def build(cls, config: LayerDropConfig, facts: ModelFacts) -> LayerDrop:
        """Check the flags against the model. Raises ``UserError``."""
        gamma = config.layer_drop_gamma
        if gamma is None:
            if facts.num_steps is None:
                raise UserError(
                    "--layer-drop-gamma: required with --layer-drop; give the rate at which theta changes per step "
                    "(default: 100 / steps of the run, if --train-iters or --global-batch-size is given)"
                )
            gamma = _PAPERS_RATE / facts.num_steps
        rising = config.layer_drop_direction == "rising"
        schedule = KeepProbabilitySchedule(config.layer_drop_theta, gamma, rising)
        return cls(facts, schedule, config.layer_drop_by_depth)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            METHOD: "layer_drop",
            "layer_drop_theta": self.schedule.theta,
            "layer_drop_gamma": self.schedule.gamma,
            "layer_drop_direction": "rising" if self.schedule.rising else "falling",
            "layer_drop_by_depth": self.by_depth,
        }

    def plan(self, step: int) -> StepPlan:
        num_layers, seq_length = self.facts.num_layers, self.facts.seq_length
        probabilities = keep_probabilities(num_layers, self._thousandths(step) / _UNIT, self.by_depth)
        return StepPlan(seq_length, (seq_length,) * num_layers, probabilities)

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        step = 0
        while step < num_steps:
            steps = self._steps_alike(step, num_steps)
            yield step, steps, self.plan(step)
            step += steps

    def executes(self, step: int, microbatch: int, layer_number: int, keep_probability: float) -> bool:
        from megatron.ltd.routing.sampling import uniform  # imports torch, which plans do not need

        return uniform(self.facts.seed, step, microbatch, layer_number) < keep_probability

    def _thousandths(self, step: int) -> int:
        return round(_UNIT * self.schedule.at(step))

    def _steps_alike(self, first_step: int, num_steps: int) -> int:
        """Number of steps from ``first_step`` on, of ``num_steps`` in all, with the same theta, which is monotonic."""
        thousandths = self._thousandths(first_step)
        later = range(first_step + 1, num_steps)
        return 1 + bisect_left(later, True, key=lambda step: self._thousandths(step) != thousandths)
