"""The plan of a run: its stages, and all totals at every step.

    step      0 ........................................... num_steps
    batch     | 16 | 32 | 48 |             64                       |    BatchSchedule (--rampup-batch-size)
    kept      | 128   | 144   | 160   | ...      |       512        |    the method's stages
    stages    |    |  |  |  | |  ...                                |    Stage: nothing changes inside one

All steps of a stage are equal, so that totals are sums over a few stages: exact integers, also after 372,757 steps. The
training loop, the learning-rate clock and ``--plan`` use the same ``RunPlan``. It has no randomness, no seconds and no
torch, and depends on the method only through its stages. ``table`` prints it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from operator import attrgetter
from typing import Literal

from megatron.ltd.errors import UserError
from megatron.ltd.plan.accounting import ModelShape, dense_step_flops, layer_tokens, step_flops
from megatron.ltd.schedules.batch_size import BatchSchedule
from megatron.ltd.schedules.step_plan import StepPlan

Clock = Literal["layer-tokens", "tokens", "samples"]

PlanStages = Callable[[int], Iterable[tuple[int, int, StepPlan]]]
"""From ``num_steps`` to (first step, number of steps, plan) in order, without gaps, as ``Method.stages``."""

_Column = Clock | Literal["FLOPs", "dense FLOPs"]

UNBOUNDED_STEPS = 1 << 62
_MOST_VALUES = 1 << 22
"""Stages times layers of a plan that is held in memory."""


@dataclass(frozen=True)
class Stage:
    """A range of equal steps."""

    first_step: int
    num_steps: int
    global_batch_samples: int
    plan: StepPlan

    @property
    def end_step(self) -> int:
        """The step after the last one."""
        return self.first_step + self.num_steps


def clock_of_step(shape: ModelShape, plan: StepPlan, num_samples: int, unit: Clock) -> int:
    """How much one step adds to the clock: layer tokens, raw tokens or samples."""
    if unit == "layer-tokens":
        return layer_tokens(plan, num_samples)
    return num_samples * (shape.seq_length if unit == "tokens" else 1)


def plan_stages(batch: BatchSchedule, method_stages: PlanStages, num_steps: int) -> Iterator[Stage]:
    """The stages of ``num_steps`` steps, as an iterator: a new one wherever the batch or the method's plan changes."""
    batches = iter(batch.stages(num_steps))
    step, batch_end, batch_samples, num_values = 0, 0, 0, 0
    for plan_first, plan_steps, plan in method_stages(num_steps):
        assert plan_first == step, f"the method's stages leave steps {step} to {plan_first} open"
        plan_end = plan_first + plan_steps
        while step < plan_end:
            if step == batch_end:
                batch_first, batch_steps, batch_samples = next(batches)
                batch_end = batch_first + batch_steps
            end = min(batch_end, plan_end)
            yield Stage(step, end - step, batch_samples, plan)
            step = end
        num_values += len(plan.kept_tokens)
        if num_values > _MOST_VALUES:
            raise UserError(
                f"--num-layers {len(plan.kept_tokens)}: the plan has too many stages for so many layers; use fewer "
                "layers, a larger granularity of the method, or a larger increment of --rampup-batch-size"
            )
    assert step == num_steps, f"the method's stages cover {step} of {num_steps} steps"


@dataclass(frozen=True)
class RunPlan:
    """The stages of a run, and its totals after any number of steps: exact integers, in O(log stages).

    ``samples(t)``, ``tokens(t)`` and so on count what the first t steps take, 0 <= t <= num_steps.
    """

    shape: ModelShape
    stages: tuple[Stage, ...]

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return self.stages[-1].end_step if self.stages else 0

    @property
    def entry_layers(self) -> frozenset[int]:
        """The layers that are entry layers (``StepPlan.entry_layers``) in some step."""
        return frozenset(layer for stage in self.stages for layer in stage.plan.entry_layers)

    def _per_step(self, stage: Stage, column: _Column) -> int:
        """What one step of the stage takes."""
        if column == "FLOPs":
            return step_flops(self.shape, stage.plan, stage.global_batch_samples)
        if column == "dense FLOPs":
            return dense_step_flops(self.shape, stage.global_batch_samples)
        return clock_of_step(self.shape, stage.plan, stage.global_batch_samples, column)

    @cached_property
    def _totals_before(self) -> dict[_Column, list[int]]:
        """By column, ``_per_step`` summed over all steps before each stage; filled on demand."""
        return {}

    def _total(self, num_steps: int, column: _Column) -> int:
        assert 0 <= num_steps <= self.num_steps, f"step {num_steps} of a plan of {self.num_steps}"
        index = bisect_right(self.stages, num_steps, key=attrgetter("first_step")) - 1
        if index < 0:
            return 0
        totals = self._totals_before.get(column)
        if totals is None:
            steps = (stage.num_steps * self._per_step(stage, column) for stage in self.stages)
            totals = self._totals_before[column] = list(accumulate(steps, initial=0))
        stage = self.stages[index]
        return totals[index] + (num_steps - stage.first_step) * self._per_step(stage, column)

    def samples(self, num_steps: int) -> int:
        """Samples of the first ``num_steps`` steps."""
        return self._total(num_steps, "samples")

    def tokens(self, num_steps: int) -> int:
        """Raw tokens of the first ``num_steps`` steps: samples times S."""
        return self._total(num_steps, "tokens")

    def layer_tokens(self, num_steps: int) -> int:
        """Layer tokens of the first ``num_steps`` steps; divided by L they are comparable with raw tokens."""
        return self._total(num_steps, "layer-tokens")

    def flops(self, num_steps: int) -> int:
        """FLOPs of the first ``num_steps`` steps, forward and backward, all devices together."""
        return self._total(num_steps, "FLOPs")

    def dense_flops(self, num_steps: int) -> int:
        """FLOPs of the dense model for the same steps."""
        return self._total(num_steps, "dense FLOPs")

    def saving(self, num_steps: int) -> float:
        """Share of the dense model's FLOPs that the first ``num_steps`` steps, 1 or more, save."""
        return 1 - self.flops(num_steps) / self.dense_flops(num_steps)

    def layer_token_saving(self, num_steps: int) -> Fraction:
        """Share of the dense model's layer tokens that the first ``num_steps`` steps save, exactly.

        This is the "theoretical saving" of the random-LTD paper. It counts every layer token equally, whatever the
        length of the sequence, and leaves out embedding and LM head.
        """
        return 1 - Fraction(self.layer_tokens(num_steps), self.tokens(num_steps) * self.shape.num_layers)

    def clock(self, num_steps: int, unit: Clock) -> int:
        """Value of the clock after ``num_steps`` steps: layer tokens, raw tokens or samples."""
        return self._total(num_steps, unit)

    def ahead(self, iteration: int, consumed: int, unit: Clock) -> int:
        """How much more than planned a run has ``consumed`` in its first ``iteration`` steps, in ``unit``.

        0 if the run followed this plan from its start; a run that was continued with another method or batch did not.
        Steps after the end of the plan are planned to consume nothing.
        """
        return consumed - self.clock(min(iteration, self.num_steps), unit)


def plan_run(shape: ModelShape, batch: BatchSchedule, method_stages: PlanStages, num_steps: int) -> RunPlan:
    """The plan of a run of ``num_steps`` steps (``--train-iters``)."""
    return RunPlan(shape, tuple(plan_stages(batch, method_stages, num_steps)))


def plan_run_until(
    shape: ModelShape, batch: BatchSchedule, method_stages: PlanStages, target: int, unit: Clock
) -> RunPlan:
    """The plan of a run until ``target`` in units of a clock.

    Each flag rounds to whole steps as in the program that it comes from:

    - ``tokens`` and ``layer-tokens`` (``--train-tokens``; a target in tokens is multiplied by L for layer tokens) run
      until the clock has reached the target, as Megatron-DeepSpeed does, so that the last step may exceed it. The
      published 1.3B recipe (300e9 layer tokens / L, batch 512, S 2048) is 372,757 steps.
    - ``samples`` (``--train-samples``) takes whole batches only, and never more samples than given, as Megatron-LM
      does. The dense run of 300e9 / 2048 samples is 286,102 steps.

    Raises:
        UserError: a target shorter than the first batch (samples), or below 1.
    """
    stages: list[Stage] = []
    reached = 0
    for stage in plan_stages(batch, method_stages, UNBOUNDED_STEPS):
        step = clock_of_step(shape, stage.plan, stage.global_batch_samples, unit)
        missing = target - reached
        steps_needed = missing // step if unit == "samples" else -(-missing // step)
        stage_steps = max(0, min(stage.num_steps, steps_needed))
        if stage_steps:
            stages.append(replace(stage, num_steps=stage_steps))
        reached += stage_steps * step
        if stage_steps < stage.num_steps:
            break
    if not stages:
        flag = "--train-samples" if unit == "samples" else "--train-tokens"
        raise UserError(f"{flag} {target} ({unit}): is not enough for one step of {batch.at(0)} samples; give more")
    return RunPlan(shape, tuple(stages))
