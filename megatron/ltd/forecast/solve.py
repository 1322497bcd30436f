"""The growth length that saves a target share, and the steps that an amount of FLOPs pays for. Exact.

    saving
     most |             ........      the saving rises with the growth length, at a fixed length of the run:
          |        ....                 bisection finds the least growth length that reaches the target
   target |   .....
          |...|
        0 +---------------------- growth length [steps]
              answer      end of the run

The length of the run is fixed by its own flag: iterations, samples, or tokens on its clock. If the clock counts layer
tokens, a longer growth makes the run longer, and its last step passes the horizon by a varying part of a step, so that
the saving is not quite monotonic. Bisection then uses the saving without that excess, which is never below the true
saving, and the true saving is checked from there on, step by step.

No torch and no method: the caller provides the plan for a growth length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from megatron.ltd.plan.accounting import ModelShape, step_flops
from megatron.ltd.plan.run_plan import UNBOUNDED_STEPS, PlanStages, RunPlan, Stage, plan_stages
from megatron.ltd.schedules.batch_size import BatchSchedule

SavingUnit = Literal["layer-tokens", "flops"]
"""What a saving is a share of: the layer tokens of the dense model, as the paper counts, or its FLOPs."""


class OutOfReach(Exception):
    """No growth length reaches the target: they save from ``least`` to ``most``."""

    def __init__(self, least: Fraction, most: Fraction) -> None:
        super().__init__(f"growth lengths save from {least} to {most}")
        self.least, self.most = least, most


def ends_dense(plan: RunPlan) -> bool:
    """Whether the last step keeps every token of every layer."""
    return plan.stages[-1].plan.min_kept_tokens == plan.shape.seq_length


def least_growth(
    plan_of: Callable[[int], RunPlan], saving: Fraction, horizon_layer_tokens: int | None, unit: SavingUnit
) -> int:
    """The least growth length in steps that saves at least ``saving`` of what ``unit`` counts, the run ending dense.

    ``plan_of`` returns the plan for a growth length of 1 or more; ``horizon_layer_tokens`` is the length of the run if
    it is fixed in layer tokens. Raises ``OutOfReach``.
    """

    def at_most(growth_steps: int) -> Fraction:
        """The saving, without the part of the last step that passes the horizon."""
        plan = plan_of(growth_steps)
        counted = plan.layer_tokens(plan.num_steps)
        return _saved(plan, unit, max(0, counted - (horizon_layer_tokens or counted)))

    most_steps = _last(lambda growth_steps: ends_dense(plan_of(growth_steps)))
    least = saved(plan_of(1), unit)
    if most_steps == 0:
        raise OutOfReach(least, least)
    answer = _last(lambda growth_steps: growth_steps <= most_steps and at_most(growth_steps) < saving) + 1
    while answer <= most_steps:
        if saved(plan_of(answer), unit) >= saving:
            return answer
        answer += 1
    raise OutOfReach(least, saved(plan_of(most_steps), unit))


def saved(plan: RunPlan, unit: SavingUnit) -> Fraction:
    """Share of the dense model's layer tokens or FLOPs that the run saves."""
    return _saved(plan, unit, 0)


def _saved(plan: RunPlan, unit: SavingUnit, excess_layer_tokens: int) -> Fraction:
    """``saved``, without the part of the last step that has so many layer tokens."""
    steps = plan.num_steps
    if unit == "layer-tokens":
        return 1 - Fraction(plan.layer_tokens(steps) - excess_layer_tokens, plan.tokens(steps) * plan.shape.num_layers)
    last_layer_tokens = plan.layer_tokens(steps) - plan.layer_tokens(steps - 1)
    excess = Fraction(excess_layer_tokens, last_layer_tokens) * (plan.flops(steps) - plan.flops(steps - 1))
    return 1 - (plan.flops(steps) - excess) / plan.dense_flops(steps)


def _last(holds: Callable[[int], bool]) -> int:
    """The last of 1, 2, ... for which ``holds`` is true, which it is up to some number and not beyond; 0 for none."""
    beyond = 1
    while holds(beyond):
        beyond *= 2
    last = beyond // 2
    while beyond - last > 1:
        middle = (last + beyond) // 2
        if holds(middle):
            last = middle
        else:
            beyond = middle
    return last


def plan_within(shape: ModelShape, batch: BatchSchedule, method_stages: PlanStages, flops: int) -> RunPlan:
    """The longest run of at most ``flops``, in whole steps; it has no steps if the first one takes more."""
    return RunPlan(shape, tuple(_affordable(shape, plan_stages(batch, method_stages, UNBOUNDED_STEPS), flops)))


def _affordable(shape: ModelShape, stages: Iterator[Stage], flops: int) -> Iterator[Stage]:
    for stage in stages:
        step = step_flops(shape, stage.plan, stage.global_batch_samples)
        num_steps = min(stage.num_steps, flops // step)
        flops -= num_steps * step
        if num_steps:
            yield replace(stage, num_steps=num_steps)
        if num_steps < stage.num_steps:
            return
