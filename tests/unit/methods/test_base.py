"""Plans, the dense method, and the registry that buys a method its command line and its tests."""

from __future__ import annotations

import pytest
import torch

from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import Dense, ModelFacts, StepPlan, build_method
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from tests.methods.cases import CASES

FACTS = ModelFacts(num_layers=3, seq_length=8, seed=1)


def test_a_dense_plan_keeps_everything() -> None:
    assert StepPlan.dense(8, 3) == StepPlan(8, (8, 8, 8), (1.0, 1.0, 1.0))
    assert StepPlan(8, (8, 2, 5), (1.0,) * 3).min_kept_tokens == 2


def test_the_dense_method_is_one_stage() -> None:
    dense = Dense(FACTS)
    assert dense.plan(0) == dense.plan(10**9) == StepPlan.dense(8, 3)
    assert list(dense.stages(5)) == [(0, 5, (8, 8, 8))]
    with pytest.raises(AssertionError):
        dense.select(torch.tensor([1]), 2, 4)


def test_the_switch_decides_what_is_built() -> None:
    on = RandomLTDConfig(random_ltd=True, ltd_min_kept_tokens=2, ltd_growth_steps=4, ltd_granularity=2)
    off = RandomLTDConfig(random_ltd=False, ltd_min_kept_tokens=2, ltd_growth_steps=4, ltd_granularity=2)
    assert isinstance(build_method(METHODS, {"random_ltd": on}, FACTS), RandomLTD)
    assert build_method(METHODS, {"random_ltd": off}, FACTS) == Dense(FACTS)


def test_every_method_has_its_line_in_the_matrix() -> None:
    assert CASES.keys() == METHODS.keys()
