"""Values and gradients of blockwise causal attention against the formula in plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron.ltd.layers.causal_blocks import BLOCK_TOKENS, causal_attention, gains_from_blocks


def plain_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Causal attention over the full matrix of scores, masked above the diagonal."""
    seq_length, size = query.shape[2:]
    scores = query @ key.transpose(2, 3) * (1 / math.sqrt(size) if scale is None else scale)
    hidden = torch.ones(seq_length, seq_length, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(dim=3) @ value


def inputs(seq_length: int, dtype: torch.dtype, batch: int = 2, heads: int = 3, size: int = 8) -> list[Tensor]:
    """Queries, keys and values as parts of one tensor, [S, B, N, 3 D], as a layer's projection yields them."""
    torch.manual_seed(seq_length)
    mixed = torch.randn(seq_length, batch, heads, 3 * size, dtype=dtype)
    return [part.permute(1, 2, 0, 3).detach().requires_grad_() for part in mixed.split(size, dim=-1)]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("seq_length", [1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 200, 3 * BLOCK_TOKENS])
def test_values_and_gradients_match_the_formula(seq_length: int, scale: float | None) -> None:
    query, key, value = inputs(seq_length, torch.float64)
    grad = torch.randn(query.shape, dtype=torch.float64)
    computed, expected = (attend(query, key, value, scale) for attend in (causal_attention, plain_attention))
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-12)
    for of_blocks, of_formula in zip(
        torch.autograd.grad(computed, (query, key, value), grad),
        torch.autograd.grad(expected, (query, key, value), grad),
        strict=True,
    ):
        torch.testing.assert_close(of_blocks, of_formula, rtol=0, atol=1e-12)


def test_a_gradient_of_stride_zero() -> None:
    query, key, value = inputs(200, torch.float64)
    computed = torch.autograd.grad(causal_attention(query, key, value, None).sum(), (query, key, value))
    expected = torch.autograd.grad(plain_attention(query, key, value, None).sum(), (query, key, value))
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-12)


def test_blocks_after_a_querys_own_are_not_read() -> None:
    query, key, value = (tensor.detach() for tensor in inputs(3 * BLOCK_TOKENS, torch.float32))
    expected = causal_attention(query, key, value, None)
    value[:, :, 2 * BLOCK_TOKENS :] = math.nan  # 0 · NaN is NaN: a masked product would show it
    poisoned = causal_attention(query, key, value, None)
    assert torch.equal(poisoned[:, :, : 2 * BLOCK_TOKENS], expected[:, :, : 2 * BLOCK_TOKENS])
    assert poisoned[:, :, 2 * BLOCK_TOKENS :].isnan().all()


def test_when_blocks_are_used() -> None:
    longer = torch.zeros(1, 1, BLOCK_TOKENS + 1, 4)
    assert gains_from_blocks(longer) and gains_from_blocks(longer.double())
    assert not gains_from_blocks(longer[:, :, 1:])
    assert not gains_from_blocks(longer.bfloat16())
    assert not gains_from_blocks(longer.to("meta"))
