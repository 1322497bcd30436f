"""FusedAttention against attention computed with one softmax per sample and head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron.ltd.parallel.mesh import Mesh
from tests.support import core_config, separated, small_model

S, B, D = 7, 3, 4


def build(
    mesh: Mesh, *, dropout: float = 0.0, softmax_scale: float | None = None, backend: str = "auto"
) -> torch.nn.Module:
    from megatron.core.transformer.enums import AttnMaskType

    from megatron.ltd.layers.attention import FusedAttention

    config = core_config(small_model(attention_dropout=dropout, attention_backend=backend), mesh)
    return FusedAttention(config, 1, AttnMaskType.causal, "self", softmax_scale=softmax_scale)


def draw(heads: int, groups: int, dtype: torch.dtype = torch.float64, length: int = S) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(length, B, number, D, generator=generator, dtype=dtype) for number in (heads, groups, groups)
    )
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def naive(query: Tensor, key: Tensor, value: Tensor, forbidden_BST: Tensor, scale: float) -> Tensor:
    """Reference attention [S, B, N * D], computed one head of one sample at a time."""
    heads_per_group = query.shape[2] // key.shape[2]
    samples = []
    for sample in range(query.shape[1]):
        outputs = []
        for head in range(query.shape[2]):
            group = head // heads_per_group
            scores_ST = query[:, sample, head] @ key[:, sample, group].T * scale
            weights_ST = scores_ST.masked_fill(forbidden_BST[sample], -math.inf).softmax(dim=1)
            outputs.append(weights_ST @ value[:, sample, group])
        samples.append(torch.cat(outputs, dim=1))
    return torch.stack(samples, dim=1)


@pytest.mark.parametrize("backend", ["auto", "unfused"])
@pytest.mark.parametrize("length", [S, 24 * S], ids=["one block", "several blocks"])
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "separate documents"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_equals_reference_attention(
    mesh: Mesh, heads: int, groups: int, masked: bool, length: int, backend: str
) -> None:
    """Long causal attention is computed by blocks (``causal_blocks``), unless plain products are asked for."""
    tokens_BS = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [1] * 7, [0] * 7]).repeat(1, length // S)
    mask = separated(tokens_BS) if masked else None
    forbidden_BST = separated(tokens_BS if masked else torch.ones_like(tokens_BS))[:, 0]
    inputs = draw(heads, groups, length=length)
    found = build(mesh, backend=backend)(*inputs, mask)
    expected = naive(*inputs, forbidden_BST, 1 / math.sqrt(D))
    assert found.shape == (length, B, heads * D)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=found.dtype)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), inputs), torch.autograd.grad((expected * weight).sum(), inputs)
    )


def test_softmax_scale_replaces_the_default(mesh: Mesh) -> None:
    inputs = draw(4, 4)
    causal_BST = torch.ones(S, S, dtype=torch.bool).triu(1).expand(B, S, S)
    torch.testing.assert_close(build(mesh, softmax_scale=0.7)(*inputs, None), naive(*inputs, causal_BST, 0.7))


def test_bidirectional_attention_sees_everything(mesh: Mesh) -> None:
    from megatron.core.transformer.enums import AttnMaskType

    inputs = draw(4, 4)
    found = build(mesh)(*inputs, None, attn_mask_type=AttnMaskType.no_mask)
    torch.testing.assert_close(found, naive(*inputs, torch.zeros(B, S, S, dtype=torch.bool), 1 / math.sqrt(D)))


def test_dropout_rate_and_scaling_and_no_dropout_in_evaluation(mesh: Mesh) -> None:
    """Equal scores and identity matrices as values make the outputs the attention weights after dropout."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    length, samples = 32, 16
    attention = build(mesh, dropout=0.25)
    query = torch.zeros(length, samples, 1, length)
    value = torch.eye(length)[:, None, None].expand(length, samples, 1, length)
    model_parallel_cuda_manual_seed(5)
    first, second = attention(query, query, value, None), attention(query, query, value, None)
    allowed = torch.ones(length, length).tril().bool()
    weights = first.permute(1, 0, 2)[:, allowed]
    usual = (1 / torch.arange(1, length + 1)).expand(length, length).T[allowed].expand_as(weights)
    dropped = weights == 0
    torch.testing.assert_close(weights[~dropped], (usual / 0.75)[~dropped])
    count, share = dropped.numel(), dropped.float().mean().item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)
    assert not torch.equal(first, second)

    model_parallel_cuda_manual_seed(5)
    assert torch.equal(attention(query, query, value, None), first)
    attention.eval()
    torch.testing.assert_close(attention(query, query, value, None).permute(1, 0, 2)[:, allowed], usual)


def test_dropout_does_not_advance_the_default_generator(mesh: Mesh) -> None:
    """Tensor-parallel ranks hold different heads, so attention dropout draws from Megatron-Core's RNG tracker."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(5)
    before = torch.get_rng_state()
    build(mesh, dropout=0.5)(*draw(4, 4, torch.float32), None)
    assert torch.equal(torch.get_rng_state(), before)
