"""Progressive layer dropping: the schedule, its stages, the random gates, and a layer that they run or skip."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import ModelFacts, Samples
from megatron.ltd.methods.layer_drop.method import LayerDrop, LayerDropConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.schedules.step_plan import StepPlan
from tests.support import build_core_model, small_model
from tests.support_errors import refused

FACTS = ModelFacts(num_layers=6, seq_length=16, seed=11)


def build(facts: ModelFacts = FACTS, **flags: object) -> LayerDrop:
    settings: dict[str, object] = {"layer_drop_theta": 0.5, "layer_drop_gamma": 0.01}
    return LayerDrop.build(LayerDropConfig(layer_drop=True, **(settings | flags)), facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["falling", "rising"])
@pytest.mark.parametrize("by_depth", ["linear", "released", "uniform", "exponential"])
def test_the_plan_is_the_papers_formula_to_a_thousandth(direction: str, by_depth: str) -> None:
    method = build(layer_drop_direction=direction, layer_drop_by_depth=by_depth)
    for step in (0, 1, 7, 100, 5000):
        decay = 0.5 * math.exp(-0.01 * step)
        theta = 0.5 + decay if direction == "falling" else 1.0 - decay
        expected = {
            "linear": [1 - layer / 6 * (1 - theta) for layer in range(1, 7)],
            "released": [1 - (layer - 1) / 6 * (1 - theta) for layer in range(1, 7)],
            "uniform": [theta] * 6,
            "exponential": [theta ** (layer / 6) for layer in range(1, 7)],
        }[by_depth]
        assert method.plan(step).keep_probability == pytest.approx(expected, abs=6e-4)
        assert method.plan(step).kept_tokens == (16,) * 6
    assert min(method.plan(0 if direction == "falling" else 10**6).keep_probability) == 1.0


def test_expected_depth_of_the_paper_and_of_its_released_code() -> None:
    """12 layers at theta 0.5: 8.75 by the paper's equation, 9.25 by its released code."""
    for by_depth, depth in (("linear", 8.75), ("released", 9.25)):
        settled = build(ModelFacts(12, 16, 1), layer_drop_by_depth=by_depth).plan(10**6)
        assert sum(settled.keep_probability) == pytest.approx(depth)


def test_gamma_is_100_over_the_steps_of_the_run_unless_given() -> None:
    settings = build(ModelFacts(6, 16, 1, num_steps=400), layer_drop_gamma=None).settings
    assert settings["layer_drop_gamma"] == 0.25
    assert build(ModelFacts(6, 16, 1, num_steps=400)).settings["layer_drop_gamma"] == 0.01


@pytest.mark.parametrize("num_steps", [1, 2, 100, 3000])
@pytest.mark.parametrize("flags", [{}, {"layer_drop_direction": "rising"}, {"layer_drop_gamma": 3.0},
                                   {"layer_drop_gamma": 0.0}, {"layer_drop_theta": 1.0}])  # fmt: skip
def test_stages_match_the_plan_of_every_step(num_steps: int, flags: dict[str, object]) -> None:
    method = build(**flags)
    stages = list(method.stages(num_steps))
    walked = itertools.chain.from_iterable([plan] * steps for _, steps, plan in stages)
    assert list(walked) == [method.plan(step) for step in range(num_steps)]
    assert [first for first, _, _ in stages] == list(
        itertools.accumulate([steps for _, steps, _ in stages], initial=0)
    )[:-1]
    assert all(before[2] != after[2] for before, after in itertools.pairwise(stages))
    assert len(stages) <= 501


def test_a_long_run_has_few_stages() -> None:
    assert len(list(build(layer_drop_gamma=100 / 372_757).stages(372_757))) == 501


def test_gates_have_the_right_probability_and_are_independent() -> None:
    """Each layer's rate is within four standard errors; layers, microbatches, steps and seeds draw differently."""
    method, other = build(), build(ModelFacts(6, 16, seed=12))
    for probability in (0.1, 0.5, 0.9):
        drawn = [[method.executes(step, 3, layer, probability) for layer in range(1, 7)] for step in range(4000)]
        gates = torch.tensor(drawn)
        error = math.sqrt(probability * (1 - probability) / 4000)
        assert (gates.double().mean(0) - probability).abs().max() < 4 * error
    covariance = torch.corrcoef(gates.double().T) - torch.eye(6)
    assert covariance.abs().max() < 0.07
    places = ((method, 0, 0, 3), (other, 0, 0, 3), (method, 1, 0, 3), (method, 0, 1, 3), (method, 0, 0, 4))
    gates_of = [
        [drop.executes(step + ahead, number, layer, 0.5) for step in range(200)]
        for drop, ahead, number, layer in places
    ]
    assert gates_of[0] == [method.executes(step, 0, 3, 0.5) for step in range(200)]
    assert len(set(map(tuple, gates_of))) == 5


def test_a_gate_that_opens_at_a_probability_opens_at_every_higher_one() -> None:
    method = build()
    for step in range(50):
        opened = [method.executes(step, 0, 2, probability) for probability in (0.0, 0.2, 0.5, 0.8, 1.0)]
        assert opened == sorted(opened) and not opened[0] and opened[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"layer_drop_gamma": None}, ("--layer-drop-gamma",)),
        ({"layer_drop_gamma": -1.0}, ("--layer-drop-gamma -1.0",)),
        ({"layer_drop_theta": 0.0}, ("--layer-drop-theta 0.0",)),
        ({"layer_drop_theta": 1.5}, ("--layer-drop-theta 1.5",)),
    ],
)
def test_bad_flags_are_refused(flags: dict[str, object], said: tuple[object, ...]) -> None:
    with refused(*said):
        build(**flags)


def test_a_skipped_layer_computes_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = build_core_model(small_model(), mesh).decoder.layers[1]
    monkeypatch.setattr(LayerDrop, "executes", lambda *_: False)
    for part in (layer.self_attention, layer.mlp, layer.input_layernorm):
        monkeypatch.setattr(part, "forward", None)
    x = torch.randn(16, 2, 24, requires_grad=True)
    with use_route(Route(StepPlan(16, (16,) * 3, (1.0, 0.9, 0.8)), build(), Samples(torch.tensor([5, 6])))):
        output, context = layer(x, attention_mask=None)
    assert output is x and context is None
