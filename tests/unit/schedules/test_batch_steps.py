"""Batches by tokens against a walk over the steps of the run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.schedules.batch_steps import SteppedBatchSchedule, read_batch_steps
from tests.support_errors import refused

GPT3 = "0:16 2.4B:320 4.8B:624 7.2B:928 9.6B:1232 12B:1536"


def test_the_schedule_of_gpt3() -> None:
    steps = read_batch_steps(GPT3.split(), 2048)
    assert steps == read_batch_steps([GPT3], 2048) == read_batch_steps([GPT3.replace(" ", ",")], 2048)
    assert steps[:2] == ((0, 16), (1_171_875, 320)) and steps[-1] == (5_859_375, 1536)
    schedule = SteppedBatchSchedule(1536, None, steps)
    assert [batch for _, _, batch in schedule.stages(10**6)] == [16, 320, 624, 928, 1232, 1536]
    assert schedule.sizes == [16, 320, 624, 928, 1232, 1536]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9)), max_size=6), st.integers(1, 9), st.integers(0, 120))
def test_stages_are_those_of_a_walk(more: list[tuple[int, int]], first: int, num_steps: int) -> None:
    """This includes batches that begin before the previous one has had a step."""
    steps, begin = [(0, first)], 0
    for length, batch in more:
        begin += length
        steps.append((begin, batch))
    schedule = SteppedBatchSchedule(steps[-1][1], None, tuple(steps))
    walked, consumed = [], 0
    for _ in range(num_steps):
        batch = max((entry for entry in steps if entry[0] <= consumed), key=lambda entry: entry[0])[1]
        assert schedule.at(consumed) == batch
        walked.append(batch)
        consumed += batch
    stages = list(schedule.stages(num_steps))
    assert [batch for _, length, batch in stages for _ in range(length)] == walked
    assert [begin for begin, _, _ in stages] == [sum(n for _, n, _ in stages[:i]) for i in range(len(stages))]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("16:1", "must begin at 0"),
        ("0:16 5", "5 is not TOKENS:SAMPLES"),
        ("0:16 1e:4", "1e:4 is not"),
        ("0:16 2.4X:4", "2.4X:4 is not"),
        ("0:0", "0:0 is not"),
        ("0:16 100:4 90:8", "at least one sample"),
        ("0:16 7:4", "at least one sample of 8 tokens"),
    ],
)
def test_bad_schedules_are_refused(given: str, said: str) -> None:
    with refused(f"--step-batch-size-schedule {given}", said):
        read_batch_steps(given.split(), 8)
