"""The routed layer against the dense layer, run by hand on the kept rows of one sample at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import Samples
from megatron.ltd.parallel.mesh import Mesh
from tests.support import build_core_model, random_ltd, separated, small_model

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


def dense_forward(layer: torch.nn.Module, *arguments: Tensor | None) -> Tensor:
    with use_route(None):
        hidden, mask, rotary = arguments
        return layer(hidden, attention_mask=mask, rotary_pos_emb=rotary)[0]


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "separate documents"])
def test_equals_the_dense_layer_on_the_kept_rows(layer: torch.nn.Module, route: Route, masked: bool) -> None:
    hidden_SBH, rotary = inputs()
    tokens_BS = torch.randint(0, 4, (B, S), generator=torch.Generator().manual_seed(3))
    mask = separated(tokens_BS) if masked else None
    with use_route(route):
        found_SBH, context = layer(hidden_SBH, attention_mask=mask, rotary_pos_emb=rotary)
    assert context is None

    columns = []
    for sample in range(B):
        kept = route.kept_tokens(2).kept_BK[sample]
        sample_mask = None if mask is None else mask[sample, :, kept][:, :, kept][None]
        computed = dense_forward(layer, hidden_SBH[kept, sample : sample + 1], sample_mask, rotary[kept])
        column = [hidden_SBH[position, sample] for position in range(S)]
        for row, position in enumerate(kept.tolist()):
            column[position] = computed[row, 0]
        columns.append(torch.stack(column))
    expected_SBH = torch.stack(columns, dim=1)
    torch.testing.assert_close(found_SBH, expected_SBH, rtol=1e-5, atol=1e-5)

    weight = torch.randn(found_SBH.shape, generator=torch.Generator().manual_seed(4))
    leaves = [hidden_SBH, *layer.parameters()]
    found = torch.autograd.grad((found_SBH * weight).sum(), leaves)
    expected = torch.autograd.grad((expected_SBH * weight).sum(), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


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
