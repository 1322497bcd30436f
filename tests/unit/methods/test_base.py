"""Plans, the dense method, and the registry that gives a method its command line and its tests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
import torch

from megatron.ltd.layers.route import Route
from megatron.ltd.methods import METHODS
from megatron.ltd.methods.base import Dense, ModelFacts, Samples, build_method
from megatron.ltd.methods.layer_drop.method import LayerDrop, LayerDropConfig
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.methods.token_bypass.method import TokenBypass, TokenBypassConfig
from megatron.ltd.schedules.step_plan import StepPlan
from tests.methods.cases import CASES
from tests.support_errors import refused

FACTS = ModelFacts(num_layers=3, seq_length=8, seed=1)
OFF = {name: entry.config_class() for name, entry in METHODS.items()}


def test_a_dense_plan_keeps_everything() -> None:
    assert StepPlan.dense(8, 3) == StepPlan(8, (8, 8, 8), (1.0, 1.0, 1.0))
    assert StepPlan(8, (8, 2, 5), (1.0,) * 3).min_kept_tokens == 2


def test_the_dense_method_is_one_stage() -> None:
    dense = Dense(FACTS)
    assert dense.plan(0) == dense.plan(10**9) == StepPlan.dense(8, 3)
    assert list(dense.stages(5)) == [(0, 5, StepPlan.dense(8, 3))]
    with pytest.raises(AssertionError):
        dense.select(Samples(torch.tensor([1])), [2], 4)


def test_a_method_is_built_only_if_its_flag_is_set() -> None:
    on = RandomLTDConfig(random_ltd=True, ltd_min_kept_tokens=2, ltd_growth_steps=4, ltd_granularity=2)
    off = RandomLTDConfig(random_ltd=False, ltd_min_kept_tokens=2, ltd_growth_steps=4, ltd_granularity=2)
    assert isinstance(build_method(METHODS, OFF | {"random_ltd": on}, FACTS), RandomLTD)
    assert build_method(METHODS, OFF | {"random_ltd": off}, FACTS) == build_method(METHODS, OFF, FACTS) == Dense(FACTS)


def test_a_token_dropping_and_a_layer_dropping_method_compose() -> None:
    """A step's plan has random-LTD's kept tokens and layer dropping's keep probabilities, and stages agree with it."""
    tokens = RandomLTDConfig(random_ltd=True, ltd_min_kept_tokens=2, ltd_growth_steps=7, ltd_granularity=2)
    depth = LayerDropConfig(layer_drop=True, layer_drop_theta=0.5, layer_drop_gamma=0.3)
    routing = RandomLTD.build(tokens, FACTS)
    dropping = LayerDrop.build(depth, FACTS)
    both = build_method(METHODS, OFF | {"random_ltd": tokens, "layer_drop": depth}, FACTS)
    walked = [StepPlan(8, routing.plan(step).kept_tokens, dropping.plan(step).keep_probability) for step in range(30)]
    assert [both.plan(step) for step in range(30)] == walked
    assert [plan for _, steps, plan in both.stages(30) for _ in range(steps)] == walked
    assert all(before[2] != after[2] for before, after in itertools.pairwise(both.stages(30)))
    assert both.settings["method"] == "random_ltd+layer_drop"
    assert {"ltd_growth_steps", "layer_drop_gamma"} <= both.settings.keys()
    ids = torch.tensor([3, 9])
    assert torch.equal(both.select(Samples(ids), [2], 4), routing.select(Samples(ids), [2], 4))
    assert [both.executes(n, 0, 3, 0.5) for n in range(20)] == [dropping.executes(n, 0, 3, 0.5) for n in range(20)]


def test_two_methods_of_a_kind_are_refused() -> None:
    entries = METHODS | {"another": dataclasses.replace(METHODS["random_ltd"], flag="--another")}
    on = RandomLTDConfig(random_ltd=True, ltd_min_kept_tokens=2, ltd_growth_steps=4, ltd_granularity=2)
    with refused("--random-ltd", "--another"):
        build_method(entries, OFF | {"random_ltd": on, "another": on}, FACTS)


def test_every_method_has_a_case_in_the_shared_tests() -> None:
    assert {case.method for case in CASES.values()} == METHODS.keys()


def test_a_learning_method_composes_with_a_layer_dropping_method() -> None:
    bypass = TokenBypassConfig(token_bypass=True, token_bypass_kept_tokens=4, token_bypass_special_ids=(2,))
    depth = LayerDropConfig(layer_drop=True, layer_drop_theta=0.5, layer_drop_gamma=0.3)
    configs = OFF | {"layer_drop": depth, "token_bypass": bypass}
    both, alone = build_method(METHODS, configs, FACTS), TokenBypass.build(bypass, FACTS)
    assert both.observes and both.plan(3).entry_layers == alone.plan(3).entry_layers == {2}
    losses_2V = torch.tensor([[2.0, 0, 0, 0, 9], [1, 0, 0, 0, 3]], dtype=torch.float64)
    learned_V = both.observe(both.initial_state(5), losses_2V)
    assert learned_V is not None
    assert torch.equal(learned_V, torch.tensor([9.96, 10, 10, 10, 9.965], dtype=torch.float64))
    samples = Samples(torch.tensor([3]), torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]]), learned_V)
    assert torch.equal(both.select(samples, [2], 4), alone.select(samples, [2], 4))


class Chosen(Dense):
    """A method whose ``select`` returns a fixed answer, valid or not."""

    answer: torch.Tensor

    def select(self, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int) -> torch.Tensor:
        return self.answer


def chosen(answer: torch.Tensor, sequence_parts: int = 1, kept_tokens: int = 4) -> torch.Tensor | None:
    """The kept tokens of layer 2, the only one that drops tokens, if ``select`` returns ``answer``."""
    method = Chosen(dataclasses.replace(FACTS, sequence_parts=sequence_parts))
    object.__setattr__(method, "answer", answer[None])
    route = Route(StepPlan(8, (8, kept_tokens, 8), (1.0,) * 3), method, Samples(torch.tensor([5, 6])))
    return route.kept_tokens(2).kept_BK


RIGHT = torch.tensor([[0, 1, 4, 7], [2, 3, 4, 5]])


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (RIGHT[:1], "shape"),
        (RIGHT[:, :3], "shape"),
        (RIGHT.flatten(), "shape"),
        (RIGHT.int(), "int64"),
        (RIGHT.flip(1), "ascending"),
        (torch.tensor([[0, 1, 1, 7], [2, 3, 4, 5]]), "distinct"),
        (RIGHT - 1, "positions"),
        (RIGHT + 1, "positions"),
    ],
)
def test_a_selection_that_breaks_a_rule_is_found(answer: torch.Tensor, rule: str) -> None:
    assert torch.equal(chosen(RIGHT), RIGHT)
    with pytest.raises(AssertionError, match=f"^dense, layer 2: .*{rule}"):
        chosen(answer)


def test_every_part_of_the_sequence_keeps_its_share() -> None:
    """Two processes hold half of the sequence each; a method that ignores this must raise an error, not a deadlock."""
    assert torch.equal(chosen(RIGHT, sequence_parts=2), RIGHT)
    for answer in (torch.tensor([[0, 1, 2, 7], [2, 3, 4, 5]]), torch.tensor([[0, 1, 4, 7], [2, 4, 5, 6]])):
        assert torch.equal(chosen(answer), answer)
        with pytest.raises(AssertionError, match="layer 2: .*4/2 of the positions"):
            chosen(answer, sequence_parts=2)
    with pytest.raises(AssertionError, match="layer 2"):
        chosen(torch.tensor([[0, 1, 4], [2, 3, 4]]), sequence_parts=2, kept_tokens=3)
