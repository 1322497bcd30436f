"""Plans against a walk over every step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.ltd.plan.accounting import ModelShape, dense_step_flops, step_flops
from megatron.ltd.plan.run_plan import Clock, PlanStages, plan_run, plan_run_until, plan_stages
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from megatron.ltd.schedules.kept_tokens import ConstantSchedule, KeptTokensSchedule, ShrinkingSchedule, StagedSchedule
from megatron.ltd.schedules.step_plan import StepPlan
from tests.support_errors import refused

SHAPE = ModelShape(4, 32, 128, 4, 4, 8, False, 256, 64)
GPT3_1_3B = ModelShape(24, 2048, 8192, 16, 16, 128, False, 50304, 2048)


def every_layer_runs(*kept_tokens: int) -> StepPlan:
    return StepPlan(max(kept_tokens), kept_tokens, (1.0,) * len(kept_tokens))


Schedule = KeptTokensSchedule | ShrinkingSchedule | ConstantSchedule | StagedSchedule


def middle_layers(schedule: Schedule, num_layers: int) -> PlanStages:
    def stages(num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        for first_step, stage_steps, kept_tokens in schedule.stages(num_steps):
            edge = schedule.seq_length
            yield first_step, stage_steps, every_layer_runs(edge, *(kept_tokens,) * (num_layers - 2), edge)

    return stages


def dense(shape: ModelShape) -> PlanStages:
    return lambda num_steps: [(0, num_steps, StepPlan.dense(shape.seq_length, shape.num_layers))]


SCHEDULES = st.one_of(
    st.builds(
        lambda minimum, growth, granularity: KeptTokensSchedule(minimum * granularity, 64, growth, granularity),
        st.integers(1, 8), st.integers(0, 120), st.sampled_from([1, 4, 8]),
    ),
    st.builds(ShrinkingSchedule, st.integers(1, 64), st.just(64), st.integers(1, 120), st.just(1)),
    st.builds(ConstantSchedule, st.integers(1, 64), st.just(64)),
    st.builds(lambda step: StagedSchedule(((0, 32), (step, 64), (step + 9, 8)), 64, 8), st.integers(1, 120)),
)  # fmt: skip
BATCHES = st.one_of(
    st.builds(BatchSchedule, st.integers(1, 9), st.none()),
    st.builds(
        lambda start, increment, count, samples: BatchSchedule(
            start + increment * count, BatchRamp(start, increment, samples)
        ),
        st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 600),
    ),
)  # fmt: skip


class Walk:
    """Totals counted step by step, without the planner."""

    def __init__(self, schedule: Schedule, batch: BatchSchedule) -> None:
        self.schedule, self.batch = schedule, batch
        self.steps = self.samples = self.layer_tokens = self.flops = self.dense_flops = 0

    def step(self) -> None:
        kept = self.schedule.at(self.steps)
        samples = self.batch.at(self.samples)
        self.layer_tokens += samples * (64 + kept + kept + 64)
        self.flops += step_flops(SHAPE, every_layer_runs(64, kept, kept, 64), samples)
        self.dense_flops += dense_step_flops(SHAPE, samples)
        self.samples += samples
        self.steps += 1

    def clock(self, unit: Clock) -> int:
        return {"layer-tokens": self.layer_tokens, "tokens": self.samples * 64, "samples": self.samples}[unit]


@settings(deadline=None)
@given(SCHEDULES, BATCHES, st.integers(0, 200))
def test_totals_equal_those_of_a_walk(schedule: Schedule, batch: BatchSchedule, num_steps: int) -> None:
    plan = plan_run(SHAPE, batch, middle_layers(schedule, 4), num_steps)
    assert plan.num_steps == num_steps
    walk = Walk(schedule, batch)
    for step in range(num_steps + 1):
        planned = (plan.samples(step), plan.layer_tokens(step), plan.flops(step), plan.dense_flops(step))
        assert planned == (walk.samples, walk.layer_tokens, walk.flops, walk.dense_flops)
        assert plan.tokens(step) == 64 * walk.samples
        assert all(plan.clock(step, unit) == walk.clock(unit) for unit in ("layer-tokens", "tokens", "samples"))
        walk.step()


@settings(deadline=None)
@given(SCHEDULES, BATCHES, st.integers(1, 100_000), st.sampled_from(["layer-tokens", "tokens"]))
def test_a_token_horizon_runs_until_it_is_reached(
    schedule: Schedule, batch: BatchSchedule, target: int, unit: Clock
) -> None:
    walk = Walk(schedule, batch)
    while walk.clock(unit) < target:
        walk.step()
    plan = plan_run_until(SHAPE, batch, middle_layers(schedule, 4), target, unit)
    assert plan.num_steps == walk.steps
    assert plan == plan_run(SHAPE, batch, middle_layers(schedule, 4), walk.steps)


@settings(deadline=None)
@given(SCHEDULES, BATCHES, st.integers(30, 900))
def test_a_sample_horizon_is_never_passed(schedule: Schedule, batch: BatchSchedule, target: int) -> None:
    walk = Walk(schedule, batch)
    while walk.samples + batch.at(walk.samples) <= target:
        walk.step()
    plan = plan_run_until(SHAPE, batch, middle_layers(schedule, 4), target, "samples")
    assert plan == plan_run(SHAPE, batch, middle_layers(schedule, 4), walk.steps)


@given(SCHEDULES, BATCHES, st.integers(0, 200))
@settings(deadline=None)
def test_a_new_stage_begins_only_at_a_change(schedule: Schedule, batch: BatchSchedule, num_steps: int) -> None:
    stages = list(plan_stages(batch, middle_layers(schedule, 4), num_steps))
    for before, after in zip(stages, stages[1:], strict=False):
        assert after.first_step == before.first_step + before.num_steps
        assert (before.global_batch_samples, before.plan) != (after.global_batch_samples, after.plan)


@pytest.mark.parametrize(
    ("target", "unit", "flag"),
    [(7, "samples", "--train-samples 7"), (0, "tokens", "--train-tokens 0"), (-5, "layer-tokens", "--train-tokens -5")],
)
def test_a_horizon_without_a_step_is_refused(target: int, unit: Clock, flag: str) -> None:
    with refused(flag, 8):
        plan_run_until(SHAPE, BatchSchedule(8, None), dense(SHAPE), target, unit)


def test_stages_that_leave_steps_out_fail_an_assertion() -> None:
    full = StepPlan.dense(64, 4)
    with pytest.raises(AssertionError, match="leave steps 3 to 5 open"):
        plan_run(SHAPE, BatchSchedule(8, None), lambda _: [(0, 3, full), (5, 5, full)], 10)
    with pytest.raises(AssertionError, match="cover 3 of 10"):
        plan_run(SHAPE, BatchSchedule(8, None), lambda _: [(0, 3, full)], 10)


def test_more_stages_and_layers_than_a_plan_can_hold() -> None:
    schedule, batch = KeptTokensSchedule(1, 1 << 16, 1 << 40, 1), BatchSchedule(1, None)
    with refused("--num-layers 70"):
        list(plan_stages(batch, middle_layers(schedule, 70), 1 << 40))


def test_ramps_of_more_batches_than_a_plan_can_hold() -> None:
    with refused("--rampup-batch-size 1 1 5"):
        BatchSchedule(1 << 30, BatchRamp(1, 1, 5))
