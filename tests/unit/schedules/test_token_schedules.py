"""Shrinking, constant and staged kept tokens against formulas in exact fractions, and against their own stages."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.schedules.kept_tokens import (
    ConstantSchedule,
    KeptTokensSchedule,
    ShrinkingSchedule,
    StagedSchedule,
    TokenSchedule,
)
from tests.support_errors import refused
from tests.unit.schedules.test_schedules import assert_stages_are_every_steps


@st.composite
def shrinking_schedules(draw: st.DrawFn) -> ShrinkingSchedule:
    granularity = draw(st.integers(1, 32))
    min_kept_tokens = granularity * draw(st.integers(1, 12))
    seq_length = min_kept_tokens + draw(st.integers(0, 300))
    return ShrinkingSchedule(min_kept_tokens, seq_length, draw(st.integers(1, 400)), granularity)


@st.composite
def staged_schedules(draw: st.DrawFn) -> StagedSchedule:
    steps = [0, *sorted(draw(st.sets(st.integers(1, 500), max_size=5)))]
    kept = [draw(st.integers(1, 16)) * 8 for _ in steps]
    starts = [(step, k) for i, (step, k) in enumerate(zip(steps, kept, strict=True)) if i == 0 or k != kept[i - 1]]
    return StagedSchedule(tuple(starts), 128, 8)


@given(shrinking_schedules(), st.integers(0, 900))
def test_shrinking_follows_the_formula(schedule: ShrinkingSchedule, step: int) -> None:
    """Kept tokens fall from all at step 0 to the minimum at ``growth_steps``, rounded down to the granularity."""
    if step == 0:
        expected = schedule.seq_length
    else:
        left = max(Fraction(0), 1 - Fraction(step, schedule.growth_steps))
        kept = math.floor(schedule.min_kept_tokens + (schedule.seq_length - schedule.min_kept_tokens) * left)
        expected = kept - kept % schedule.granularity if kept < schedule.seq_length else kept
    assert schedule.at(step) == expected


@given(
    st.one_of(
        shrinking_schedules(), staged_schedules(), st.builds(ConstantSchedule, st.integers(1, 9), st.integers(9, 20))
    ),
    st.integers(0, 900),
)
def test_stages_agree_with_every_step(schedule: TokenSchedule, num_steps: int) -> None:
    assert_stages_are_every_steps(schedule, num_steps)


def test_shrinking_by_hand() -> None:
    schedule = ShrinkingSchedule(8, 32, 10, 8)
    assert [schedule.at(step) for step in range(12)] == [32, 24, 24, 24, 16, 16, 16, 8, 8, 8, 8, 8]
    assert ShrinkingSchedule(32, 197, 100, 8).at(1) == 192
    assert list(schedule.stages(10**18))[-1] == (7, 10**18 - 7, 8)


def test_staged_by_hand() -> None:
    schedule = StagedSchedule(((0, 16), (3, 8), (5, 30)), 30, 8)
    assert [schedule.at(step) for step in range(7)] == [16, 16, 16, 8, 8, 30, 30]
    assert list(schedule.stages(4)) == [(0, 3, 16), (3, 1, 8)]


@pytest.mark.parametrize(
    ("starts", "names"),
    [
        ((), ("--stages", 0, "0:128")),
        (((4, 8),), ("--stages 4:8", 0)),
        (((0, 8), (5, 16), (5, 24)), ("--stages 0:8 5:16 5:24", "5:24")),
        (((0, 8), (5, 16), (4, 24)), ("--stages 0:8 5:16 4:24", "4:24")),
        (((0, 8), (5, 8)), ("--stages 0:8 5:8", "5:8")),
        (((0, 12),), ("--stages 0:12", "--granularity 8", 64)),
        (((0, 8), (5, 72)), ("5:72", "--seq-length 64")),
        (((0, 0),), ("0:0", 1)),
    ],
)
def test_bad_stages_are_refused(starts: tuple[tuple[int, int], ...], names: tuple[object, ...]) -> None:
    with refused(*names):
        StagedSchedule(starts, 64, 8, ("--stages", "--granularity"))


def test_bad_shrinking_and_constant_schedules_are_refused() -> None:
    flags = ("--kept", "--shrinking", "--granularity")
    with refused("--shrinking 0", 1):
        ShrinkingSchedule(8, 64, 0, 8, flags)
    with refused("--kept 12", "--granularity 8"):
        ShrinkingSchedule(12, 64, 5, 8, flags)
    with refused("--kept 65", "--seq-length 64"):
        ConstantSchedule(65, 64, "--kept")
    with refused("--kept 0", 1):
        ConstantSchedule(0, 64, "--kept")


@pytest.mark.parametrize("kind", [KeptTokensSchedule, ShrinkingSchedule])
def test_stages_cost_no_more_than_the_steps(kind: type[KeptTokensSchedule]) -> None:
    """Only ten of 2^27 possible numbers of kept tokens occur."""
    assert len(list(kind(16, 1 << 31, 10, 16).stages(1 << 40))) <= 12


@pytest.mark.parametrize("kind", [KeptTokensSchedule, ShrinkingSchedule])
def test_more_stages_than_a_plan_can_hold(kind: type[KeptTokensSchedule]) -> None:
    with refused("granularity 16", 8192):
        kind(16, 1 << 30, 1 << 40, 16)
    assert kind(8192, 1 << 30, 1 << 40, 8192)
