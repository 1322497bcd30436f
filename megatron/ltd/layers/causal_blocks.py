"""Causal attention on a CPU that skips most of the upper triangle.

B micro-batch, N heads, S sequence, D head size. Each block of queries attends to the keys up to its own end:

              keys
           ┌──┬──────────┐
           │▒▒│          │     ▒ computed and masked on the diagonal     (n + 1) / 2n of the square for n blocks
    queries├──┼──┐       │     ░ computed
           │░░│▒▒│       │
           ├──┴──┼──┐    │
           │░░░░░│▒▒│    │
           └─────┴──┴────┘

torch's CPU kernel processes keys in chunks of 512: for causal attention it computes the full square up to S = 512 and
masks half of it. Here the same kernel is called once per block, with the same results up to rounding.

Not here: masks, dropout, and other devices, whose kernels skip masked pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_TOKENS = 128
"""Queries per block: of 32 to 256 within 5 % of the fastest at every S from 256 to 1024, with the fewest calls."""

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _staircase(seq_length: int, like: Tensor) -> Tensor:
    """Additive mask of the last block of whole blocks, [block, S rounded up]; every block's mask is a part of it."""
    width = -(-seq_length // BLOCK_TOKENS) * BLOCK_TOKENS
    forbidden = torch.full((BLOCK_TOKENS, width), -torch.inf, dtype=like.dtype, device=like.device)
    return forbidden.triu_(width - BLOCK_TOKENS + 1)


def _blocks(seq_length: int, staircase: Tensor) -> Iterator[tuple[int, int, Tensor | None]]:
    """(first query, end, mask [queries, end]) of each block, the last one first; the first block is plainly causal."""
    for start in reversed(range(0, seq_length, BLOCK_TOKENS)):
        end = min(start + BLOCK_TOKENS, seq_length)
        offset = staircase.shape[1] - BLOCK_TOKENS - start
        yield start, end, staircase[: end - start, offset : offset + end] if start else None


class _CausalByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """Attend block by block; saves what the kernel's backward needs."""
        batch, heads, seq_length, size = query.shape
        staircase = _staircase(seq_length, query)
        # In memory [S, B, N, D], which the next product reads without a copy.
        context = query.new_empty(seq_length, batch, heads, size).permute(1, 2, 0, 3)
        log_sums = []
        for start, end, mask in _blocks(seq_length, staircase):
            context[:, :, start:end], log_sum = _attend(
                query[:, :, start:end],
                key[:, :, :end],
                value[:, :, :end],
                0.0,
                mask is None,
                attn_mask=mask,
                scale=scale,
            )
            log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, context, staircase, *log_sums)
        ctx.scale = scale
        return context

    @staticmethod
    def backward(ctx: Any, grad_context: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradients of each block's queries, and those of keys and values summed over blocks, last block first."""
        query, key, value, context, staircase, *log_sums = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key = grad_value = query.new_empty(0)
        blocks = _blocks(query.shape[2], staircase)
        for (start, end, mask), log_sum in zip(blocks, log_sums, strict=True):
            grad_query[:, :, start:end], key_part, value_part = _attend_backward(
                grad_context[:, :, start:end],
                query[:, :, start:end],
                key[:, :, :end],
                value[:, :, :end],
                context[:, :, start:end],
                log_sum,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            if end == query.shape[2]:  # the first of the loop, which sees every key
                grad_key, grad_value = key_part, value_part
            else:
                grad_key[:, :, :end] += key_part
                grad_value[:, :, :end] += value_part
        return grad_query, grad_key, grad_value, None


def gains_from_blocks(query: Tensor) -> bool:
    """Whether ``causal_attention`` is faster for these queries, [B, N, S, D], and as exact.

    Not in bfloat16 or float16, in which the gradients of a key from several blocks would be summed.
    """
    return query.device.type == "cpu" and query.element_size() >= 4 and query.shape[2] > BLOCK_TOKENS


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """``softmax(Q K^T · scale, causal) V`` on a CPU: [B, N, S, D], laid out in memory as [S, B, N, D].

    ``query``, ``key`` and ``value`` are [B, N, S, D] with unit stride in D; ``scale`` None is 1 / sqrt(D).
    """
    return _CausalByBlocks.apply(query, key, value, scale)
