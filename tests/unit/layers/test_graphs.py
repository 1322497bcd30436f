"""Layers as CUDA graphs against the same layers without them, bit for bit, on a stand-in that records and repeats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel import random as core_random
from torch import Tensor

from megatron.ltd.layers.graphs import GraphedLayer
from megatron.ltd.methods.base import Method
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.parallel.random import seed_step
from tests.stand_ins import cuda_graphs
from tests.support import build_stepper, dense, random_batches, random_ltd, small_model, step_gradients

MICROBATCHES = 3


@pytest.fixture
def graphs_on_cpu(mesh: Mesh) -> Iterator[None]:
    with cuda_graphs.on_cpu():
        yield


def trained(mesh: Mesh, graphs: str, method: Method, **model: Any) -> list[Any]:
    """Losses, every gradient and an evaluation after each of six steps, on new data each."""
    documents = model.pop("documents", False)
    config = small_model(cuda_graph_impl=graphs, **model)
    stepper = build_stepper(config, mesh, method)
    seen: list[Any] = []
    for step in range(6):
        batches = random_batches(MICROBATCHES, 2, config.seq_length, documents=documents, seed=step)
        result = stepper.train(iter(batches), method.plan(step), step, MICROBATCHES)
        seen += [result.loss, result.grad_norm, step_gradients(stepper)]
        for chunk in stepper.chunks:
            chunk.eval()
        with torch.no_grad():
            seen.append(stepper.evaluate(iter(batches), MICROBATCHES))
        for chunk in stepper.chunks:
            chunk.train()
    return seen


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, dict) and any(isinstance(value, Tensor) for value in theirs.values()):
            assert ours.keys() == theirs.keys()
            assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
        else:
            assert ours == theirs


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "dense": ({}, None),
    "single tokens": ({}, {"ltd_granularity": 4}),
    "blocks": ({}, {"ltd_granularity": 4, "ltd_block_size": 4}),
    "RoPE, documents": ({"position_embedding_type": "rope", "documents": True}, {"ltd_granularity": 4}),
    "dropout": ({"attention_dropout": 0.2, "hidden_dropout": 0.3}, {"ltd_granularity": 4}),
    "SwiGLU, groups, no bias": (
        {"swiglu": True, "num_query_groups": 2, "group_query_attention": True, "add_bias_linear": False},
        {"ltd_granularity": 4},
    ),
}


@pytest.mark.usefixtures("graphs_on_cpu")
@pytest.mark.parametrize("case", METHODS)
def test_equal_without_graphs(mesh: Mesh, case: str) -> None:
    """Over changes of K, with an evaluation after each step."""
    model, flags = METHODS[case]
    shape = {name: value for name, value in model.items() if name != "documents"}
    method = dense(small_model(**shape)) if flags is None else random_ltd(small_model(**shape), 8, **flags)
    expected = trained(mesh, "none", method, **model)
    assert cuda_graphs.captures == 0
    found = trained(mesh, "local", method, **model)
    assert_same(found, expected)
    stages = [plan.kept_tokens for plan in map(method.plan, range(6))]
    changes = sum(now != before for now, before in zip(stages[1:], stages, strict=False))
    assert (changes > 0) == (flags is not None)
    assert cuda_graphs.captures == 2 * (3 + changes)  # the middle one of three layers is routed
    assert cuda_graphs.replays == 2 * 3 * 6 * MICROBATCHES


class _Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
        self.number, self.tensor = 1.0, torch.ones(2)

    def compute(self, x: Tensor, by: Tensor | None = None) -> tuple[Tensor, None]:
        return x * self.weight * self.tensor * self.number * (1.0 if by is None else by), None


@pytest.fixture
def scale(graphs_on_cpu: None) -> tuple[_Scale, GraphedLayer]:
    layer = _Scale()
    return layer, GraphedLayer(layer, layer.compute, warmup_steps=2)


def test_the_stand_in_repeats_what_was_captured(scale: tuple[_Scale, GraphedLayer]) -> None:
    """A number or a tensor that a layer reads beside its arguments has no effect later, as on a GPU."""
    layer, graphed = scale
    x = torch.tensor([1.0, 10.0], requires_grad=True)
    for other in (1.0, 5.0):
        layer.number, layer.tensor = other, other * torch.ones(2)
        out = graphed(x)[0]
        assert out.tolist() == [2.0, 30.0]
        assert torch.autograd.grad(out.sum(), [x, layer.weight])[1].tolist() == [1.0, 10.0]


def test_the_stand_in_refuses_what_cuda_does_not_capture(graphs_on_cpu: None) -> None:
    layer, x = _Scale(), torch.ones(2, requires_grad=True)
    for compute in (
        lambda x: (x * float(x.detach().sum()), None),
        lambda x: (x[x > 0], None),
        lambda x: (x * torch.tensor([1.0, 2.0]), None),
    ):
        with pytest.raises(AssertionError, match="CUDA cannot capture"):
            GraphedLayer(layer, compute, warmup_steps=1)(x)


def test_arguments_and_weights_are_read_by_each_replay(scale: tuple[_Scale, GraphedLayer]) -> None:
    layer, graphed = scale
    for value in (1.0, 4.0):
        x, by = torch.full((2,), value, requires_grad=True), torch.tensor([value, 1.0])
        with torch.no_grad():
            layer.weight.add_(1.0)
        out = graphed(x, by=by)[0]
        weight = layer.weight.detach()
        assert out.tolist() == (value * weight * by).tolist()
        grads = torch.autograd.grad(out.sum(), [x, layer.weight])
        assert [grad.tolist() for grad in grads] == [(weight * by).tolist(), (value * by).tolist()]
    assert (cuda_graphs.captures, cuda_graphs.replays) == (2, 4)


def test_a_moved_weight_another_shape_and_another_argument_are_captured_again(
    scale: tuple[_Scale, GraphedLayer],
) -> None:
    layer, graphed = scale

    def check(x: Tensor, captures: int, **more: Any) -> None:
        out = graphed(x, **more)[0]
        assert torch.equal(out, x * layer.weight)
        out.sum().backward()
        assert cuda_graphs.captures == 2 * captures

    x = torch.ones(2, requires_grad=True)
    check(x, 1)
    layer.weight.data = torch.tensor([7.0, 8.0])
    check(x, 2)
    check(torch.ones(3, 2, requires_grad=True), 3)
    check(torch.ones(3, 2, requires_grad=True), 3)
    check(torch.ones(3, 2, requires_grad=True), 4, by=torch.ones(2))


def test_two_microbatches_under_way_are_an_error(scale: tuple[_Scale, GraphedLayer]) -> None:
    _, graphed = scale
    x = torch.ones(2, requires_grad=True)
    graphed(x)
    with pytest.raises(AssertionError, match="one microbatch"):
        graphed(x)


def test_generators_that_a_graph_has_registered_are_seeded_again(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """With states as generators, which is what CUDA has: each step draws what it drew without them."""
    tracker = get_cuda_rng_tracker()
    monkeypatch.setattr(tracker, "use_cudagraphable_rng", True)
    monkeypatch.setattr(core_random, "_get_cuda_rng_state", lambda *_, **__: torch.Generator())
    name = "model-parallel-rng"
    tracker.reset()
    seed_step(1, 0, mesh)
    generator = tracker.get_states()[name]
    drawn = torch.rand(3, generator=generator)
    seed_step(1, 1, mesh)
    assert tracker.get_states()[name] is generator
    assert not torch.equal(torch.rand(3, generator=generator), drawn)
    seed_step(1, 0, mesh)
    assert torch.equal(torch.rand(3, generator=generator), drawn)
    tracker.reset()
