"""Batch sizes against Megatron-Core's own microbatch calculators, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from tests.support_errors import refused


@st.composite
def ramped_schedules(draw: st.DrawFn) -> BatchSchedule:
    start, increment = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    full = start + increment * draw(st.integers(1, 9))
    return BatchSchedule(full, BatchRamp(start, increment, draw(st.integers(1, 3000))))


def megatron_core_batches(schedule: BatchSchedule, num_steps: int) -> list[int]:
    ramp = schedule.ramp
    assert ramp is not None
    calculator = RampupBatchsizeNumMicroBatchesCalculator(
        schedule.global_batch_samples, 1, 1, False, 1, ramp.start_samples, ramp.increment_samples, ramp.ramp_samples
    )
    batches, consumed_samples = [], 0
    for _ in range(num_steps):
        calculator.update(consumed_samples, consistency_check=True)
        batches.append(calculator.get_current_global_batch_size())
        consumed_samples += batches[-1]
    return batches


@settings(deadline=None)
@given(ramped_schedules(), st.integers(0, 400))
def test_batch_sizes_equal_megatron_cores(schedule: BatchSchedule, num_steps: int) -> None:
    stages = list(schedule.stages(num_steps))
    walked = [batch for _, steps, batch in stages for _ in range(steps)]
    assert walked == megatron_core_batches(schedule, num_steps)
    batches = [batch for _, _, batch in stages]
    assert batches == sorted(set(batches)), "two neighbouring stages are one"
    assert [first for first, _, _ in stages] == [sum(n for _, n, _ in stages[:i]) for i in range(len(stages))]


def test_the_batch_size_ramp_of_gpt3() -> None:
    schedule = BatchSchedule(1536, BatchRamp(16, 16, 5_859_375))
    walked = [batch for _, steps, batch in schedule.stages(30_000) for _ in range(steps)]
    assert walked == megatron_core_batches(schedule, 30_000)
    assert walked[-1] == 1536


def test_a_constant_batch_is_one_stage() -> None:
    assert list(BatchSchedule(64, None).stages(10**15)) == [(0, 10**15, 64)]
    assert list(BatchSchedule(64, None).stages(0)) == []
    assert BatchSchedule(64, None).at(10**9) == 64


@pytest.mark.parametrize(
    ("full", "ramp", "names"),
    [
        (64, BatchRamp(64, 16, 100), ["--rampup-batch-size 64 16 100", "--global-batch-size 64"]),
        (64, BatchRamp(16, 20, 100), ["--rampup-batch-size 16 20 100", "--global-batch-size 64", "48"]),
    ],
)
def test_bad_ramps_are_refused(full: int, ramp: BatchRamp, names: list[str]) -> None:
    with refused(*names):
        BatchSchedule(full, ramp)


def test_batches_split_into_whole_microbatches() -> None:
    BatchSchedule(64, BatchRamp(16, 16, 100)).check_divisible(4, 4)
    with refused("--rampup-batch-size", 24, 16):
        BatchSchedule(64, BatchRamp(16, 8, 100)).check_divisible(4, 4)
    with refused("--global-batch-size 60", "--micro-batch-size 4", 2):
        BatchSchedule(60, None).check_divisible(4, 2)
