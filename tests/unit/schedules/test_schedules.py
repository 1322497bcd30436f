"""Schedules against their formulas in exact fractions, and against their own stages."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.schedules.keep_probability import KeepProbabilitySchedule
from megatron.ltd.schedules.kept_tokens import KeptTokensSchedule, TokenSchedule
from tests.support_errors import refused


@st.composite
def kept_tokens_schedules(draw: st.DrawFn) -> KeptTokensSchedule:
    granularity = draw(st.integers(1, 32))
    min_kept_tokens = granularity * draw(st.integers(1, 12))
    seq_length = min_kept_tokens + draw(st.integers(0, 300))
    return KeptTokensSchedule(min_kept_tokens, seq_length, draw(st.integers(0, 400)), granularity)


@given(kept_tokens_schedules(), st.integers(0, 900))
def test_kept_tokens_follow_the_formula(schedule: KeptTokensSchedule, step: int) -> None:
    if step >= schedule.growth_steps:
        expected = schedule.seq_length
    else:
        progress = Fraction(step, schedule.growth_steps)
        grown = math.floor(schedule.min_kept_tokens + (schedule.seq_length - schedule.min_kept_tokens) * progress)
        expected = max(grown - grown % schedule.granularity, schedule.min_kept_tokens)
    assert schedule.at(step) == expected


@given(kept_tokens_schedules())
def test_kept_tokens_stay_in_bounds_and_never_shrink(schedule: KeptTokensSchedule) -> None:
    kept_tokens = [schedule.at(step) for step in range(schedule.growth_steps + 2)]
    assert kept_tokens == sorted(kept_tokens)
    assert kept_tokens[schedule.growth_steps] == schedule.seq_length
    if schedule.growth_steps:
        assert kept_tokens[0] == schedule.min_kept_tokens
    growing = kept_tokens[: schedule.growth_steps]
    assert all(kept % schedule.granularity == 0 or kept == schedule.seq_length for kept in growing)


def assert_stages_are_every_steps(schedule: TokenSchedule, num_steps: int) -> None:
    """Check that stages are gapless, not empty, differ from their neighbours, and agree with ``at`` at every step."""
    stages = list(schedule.stages(num_steps))
    walked = [kept for _, stage_steps, kept in stages for _ in range(stage_steps)]
    assert walked == [schedule.at(step) for step in range(num_steps)]
    assert [first for first, _, _ in stages] == [sum(n for _, n, _ in stages[:i]) for i in range(len(stages))]
    assert all(stage_steps > 0 for _, stage_steps, _ in stages)
    kept_tokens = [kept for _, _, kept in stages]
    assert all(one != other for one, other in itertools.pairwise(kept_tokens)), "two neighbouring stages are one"


@given(kept_tokens_schedules(), st.integers(0, 900))
def test_stages_agree_with_every_step(schedule: KeptTokensSchedule, num_steps: int) -> None:
    assert_stages_are_every_steps(schedule, num_steps)


def test_a_published_recipe_by_hand() -> None:
    schedule = KeptTokensSchedule(128, 2048, 200_000, 16)
    assert [schedule.at(step) for step in (0, 1666, 1667, 100_000, 199_999, 200_000)] == [
        128, 128, 144, 1088, 2032, 2048,
    ]  # fmt: skip
    assert len(list(schedule.stages(372_757))) == 121


def test_a_sequence_that_is_not_a_multiple_of_the_granularity() -> None:
    schedule = KeptTokensSchedule(32, 197, 100, 8)
    assert [schedule.at(step) for step in (0, 99, 100)] == [32, 192, 197]


def test_a_huge_horizon_is_cheap() -> None:
    schedule = KeptTokensSchedule(128, 512, 1000, 16)
    assert list(schedule.stages(10**18))[-1] == (1000, 10**18 - 1000, 512)


FLAGS = ("--kept", "--growth", "--granularity")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((0, 512, 10, 1), ("--kept 0", 1)),
        ((513, 512, 10, 1), ("--kept 513", "--seq-length 512")),
        ((200, 512, 10, 16), ("--kept 200", "--granularity 16", 192, 208)),
        ((8, 512, 10, 16), ("--kept 8", "--granularity 16", 16)),
    ],
)
def test_bad_schedules_are_refused(arguments: tuple[int, int, int, int], names: tuple[object, ...]) -> None:
    with refused(*names):
        KeptTokensSchedule(*arguments, FLAGS)


def test_keep_probability_falls_from_one_to_theta() -> None:
    schedule = KeepProbabilitySchedule(theta=0.5, gamma=0.001)
    assert schedule.at(0) == 1.0
    assert schedule.at(1000) == pytest.approx(0.5 + 0.5 / math.e, rel=1e-12)
    assert schedule.at(10**6) == 0.5
    probabilities = [schedule.at(step) for step in range(0, 5000, 50)]
    assert probabilities == sorted(probabilities, reverse=True)
