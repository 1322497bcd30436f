"""Answers of the solver against a search over every number, and against the published recipe."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.ltd.forecast.solve import OutOfReach, SavingUnit, ends_dense, least_growth, plan_within, saved
from megatron.ltd.plan.run_plan import RunPlan, plan_run, plan_run_until
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from megatron.ltd.schedules.kept_tokens import KeptTokensSchedule, ShrinkingSchedule
from tests.unit.plan.test_run_plan import GPT3_1_3B, SHAPE, dense, middle_layers

BATCHES = st.sampled_from([BatchSchedule(3, None), BatchSchedule(8, BatchRamp(2, 2, 90))])
UNITS = st.sampled_from(["layer-tokens", "flops"])


def share(plan: RunPlan, unit: SavingUnit) -> Fraction:
    """What a run saves, from the plan's totals."""
    steps = plan.num_steps
    if unit == "flops":
        return 1 - Fraction(plan.flops(steps), plan.dense_flops(steps))
    return 1 - Fraction(plan.layer_tokens(steps), plan.tokens(steps) * plan.shape.num_layers)


def by_trying(
    plan_of: Callable[[int], RunPlan], saving: Fraction, most: int, unit: SavingUnit = "layer-tokens"
) -> int | None:
    """The least of 1 to ``most`` that does it."""
    plans = ((growth, plan_of(growth)) for growth in range(1, most + 1))
    return next((growth for growth, plan in plans if ends_dense(plan) and share(plan, unit) >= saving), None)


@settings(max_examples=70)
@given(
    BATCHES, st.integers(2, 60), st.booleans(), st.sampled_from([1, 4, 16]),
    st.fractions(0, Fraction(1, 2), max_denominator=500), UNITS,
)  # fmt: skip
def test_the_least_growth(
    batch: BatchSchedule, length: int, in_tokens: bool, granularity: int, saving: Fraction, unit: SavingUnit
) -> None:
    """In a run of so many steps, or of the layer tokens of half as many dense ones, less a part of a step.

    There a longer growth lengthens the run in whole steps, so that its saving rises like a sawtooth.
    """
    horizon = length // 2 * 8 * 64 * 4 - 100 if in_tokens else None

    def plan_of(growth_steps: int) -> RunPlan:
        stages = middle_layers(KeptTokensSchedule(16, 64, growth_steps, granularity), 4)
        if horizon is None:
            return plan_run(SHAPE, batch, stages, length)
        return plan_run_until(SHAPE, batch, stages, horizon, "layer-tokens")

    most = length if horizon is None else 4 * plan_of(1 << 40).num_steps
    expected = by_trying(plan_of, saving, most, unit)
    if expected is not None:
        assert least_growth(plan_of, saving, horizon, unit) == expected
        return
    with pytest.raises(OutOfReach) as reach:
        least_growth(plan_of, saving, horizon, unit)
    savings = [share(plan, unit) for plan in map(plan_of, range(1, most + 1)) if ends_dense(plan)]
    if savings:
        assert (reach.value.least, reach.value.most) == (savings[0], savings[-1])


@pytest.mark.parametrize(
    ("granularity", "horizon", "expected"),
    [(1, 23_936, 11), (4, 17_081, 7), (16, 26_678, 11), (1, 19_823, 11), (16, 18_452, 11)],
)
def test_a_tooth_of_the_sawtooth_is_not_skipped(granularity: int, horizon: int, expected: int) -> None:
    """The next growth length adds a whole dense step to the run, and saves less than this one."""

    def plan_of(growth_steps: int) -> RunPlan:
        stages = middle_layers(KeptTokensSchedule(16, 64, growth_steps, granularity), 4)
        return plan_run_until(SHAPE, BatchSchedule(8, None), stages, horizon, "layer-tokens")

    target = share(plan_of(expected), "layer-tokens")
    assert share(plan_of(expected + 1), "layer-tokens") < target
    assert least_growth(plan_of, target, horizon, "layer-tokens") == expected == by_trying(plan_of, target, 40)


def test_a_schedule_that_shrinks_is_out_of_reach() -> None:
    with pytest.raises(OutOfReach) as reach:
        least_growth(
            lambda steps: plan_run(
                SHAPE, BatchSchedule(8, None), middle_layers(ShrinkingSchedule(16, 64, steps, 16), 4), 30
            ),
            Fraction(1, 10),
            None,
            "layer-tokens",
        )
    assert reach.value.least == reach.value.most


@pytest.mark.parametrize("granularity", [1, 16])
def test_a_third_of_the_published_model_takes_three_quarters_of_the_run(granularity: int) -> None:
    """Rounding kept tokens down saves half a granularity a step, so that a slightly shorter growth is enough."""
    num_steps = 286_102

    def plan_of(growth_steps: int) -> RunPlan:
        stages = middle_layers(KeptTokensSchedule(128, 2048, growth_steps, granularity), 24)
        return plan_run(GPT3_1_3B, BatchSchedule(512, None), stages, num_steps)

    saving = Fraction(333, 1000)
    growth = least_growth(plan_of, saving, None, "layer-tokens")
    assert saved(plan_of(growth), "layer-tokens") >= saving > saved(plan_of(growth - 1), "layer-tokens")
    not_kept = (2048 - 128) / 2 + granularity / 2  # of a growing step's tokens in each of 22 layers of 24, on average
    closed_form = 0.333 / (22 / 24 * not_kept / 2048)
    assert growth / num_steps == pytest.approx(closed_form, abs=1e-4)
    assert closed_form == pytest.approx(0.776, abs=0.002 if granularity == 1 else 0.008)


@given(BATCHES, st.integers(0, 60), st.integers(0, 40))
def test_the_longest_run_within_a_budget_of_flops(batch: BatchSchedule, growth: int, num_steps: int) -> None:
    stages = middle_layers(KeptTokensSchedule(16, 64, growth, 16), 4)
    longer = plan_run(SHAPE, batch, stages, num_steps + 1)
    budget, one_more = longer.flops(num_steps), longer.flops(num_steps + 1)
    for flops in {budget, (budget + one_more) // 2, one_more - 1}:
        assert plan_within(SHAPE, batch, stages, flops).num_steps == num_steps
    assert plan_within(SHAPE, batch, stages, one_more) == longer


def test_a_budget_below_one_step_gives_an_empty_run() -> None:
    plan = plan_within(SHAPE, BatchSchedule(8, None), dense(SHAPE), 10)
    assert plan.num_steps == 0 and plan.stages == ()
