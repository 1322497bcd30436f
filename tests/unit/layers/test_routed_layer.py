"""The routed layer: skipped tokens pass, and without any it is the dense layer. Its numbers: ``tests/unit/models``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import Samples
from megatron.ltd.parallel.mesh import Mesh
from tests.support import build_core_model, random_ltd, small_model

S, K, B, H = 16, 6, 3, 24
IDS = torch.tensor([11, 12, 13])


@pytest.fixture(scope="module")
def layer(mesh: Mesh) -> torch.nn.Module:
    """The middle layer of a RoPE model with noise on all parameters, so that norms and biases matter."""
    layer = build_core_model(small_model(position_embedding_type="rope"), mesh).decoder.layers[1]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return layer


@pytest.fixture
def route() -> Route:
    method = random_ltd(small_model(), K)
    return Route(method.plan(0), method, Samples(IDS))


def inputs() -> tuple[Tensor, Tensor]:
    """Hidden states [S, B, H] and rotary angles [S, 1, 1, D]."""
    hidden_SBH = torch.randn(S, B, H, generator=torch.Generator().manual_seed(2)).requires_grad_()
    frequencies = 10000.0 ** (-torch.arange(0, 6, 2) / 6)
    angles = torch.arange(S)[:, None] * torch.cat([frequencies, frequencies])
    return hidden_SBH, angles[:, None, None]


def test_skipped_tokens_pass_unchanged_and_the_input_is_left_alone(layer: torch.nn.Module, route: Route) -> None:
    hidden_SBH, rotary = inputs()
    before = hidden_SBH.detach().clone()
    with use_route(route):
        output_SBH, _ = layer(hidden_SBH, rotary_pos_emb=rotary)
    assert torch.equal(hidden_SBH, before)
    for sample in range(B):
        skipped = torch.ones(S, dtype=torch.bool)
        skipped[route.kept_tokens(2).kept_BK[sample]] = False
        assert torch.equal(output_SBH[skipped, sample], before[skipped, sample])
        assert (output_SBH[~skipped, sample] != before[~skipped, sample]).any(dim=-1).all()


@pytest.mark.parametrize("how", ["evaluation", "no route", "plan keeps everything"])
def test_without_dropped_tokens_it_is_megatron_cores_layer(layer: torch.nn.Module, route: Route, how: str) -> None:
    """The output is bit-equal to that of Megatron-Core's own layer, whose forward this class replaces."""
    from megatron.core.transformer.transformer_layer import TransformerLayer

    hidden_SBH, rotary = inputs()
    expected = TransformerLayer.forward(layer, hidden_SBH, attention_mask=None, rotary_pos_emb=rotary)[0]
    full = Route(route.method.plan(10), route.method, Samples(IDS))
    layer.train(how != "evaluation")
    try:
        with use_route({"evaluation": route, "no route": None, "plan keeps everything": full}[how]):
            found = layer(hidden_SBH, attention_mask=None, rotary_pos_emb=rotary)[0]
    finally:
        layer.train()
    assert torch.equal(found, expected)
