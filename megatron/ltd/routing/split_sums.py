"""The two ends of a routed layer in Triton's kernels, each with the addition beside it.

    hidden_SBH ── split ──┬─► part_KBH ─► norm ─► attention ─► + ──┬─► norm ─► MLP ─► x_KBH
         ┊                └─► residual_KBH, the same memory ───┘   └─► residual ─────┐
         └┈┈┈┈► rest_SBH ── merge: rest[rows] = residual + (x + bias) ◄── x, bias ◄──┘

    backward    split: grad_rest[rows] = grad of part + grad of residual

``gather_scatter`` writes a sum that was stored before, and reads it again for that; here a sum goes to its rows as it
is computed. Forward and backward save a launch each, and 2 K B H numbers to write and read. Values and gradients have
the same bits, if the norm is one operation: the gradients of several would be added up in another order. What may be
overwritten is decided there.

Shapes: S sequence, K kept tokens, B micro-batch, H hidden. Rows are those of ``gather_scatter``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron.ltd.routing.gather_scatter import copy_of, split_gradient, take_rows, to_overwrite
from megatron.ltd.routing.triton_kernels import write_sums


class _SplitForSum(torch.autograd.Function):
    """``split_for_sum`` of hidden states that may be overwritten."""

    @staticmethod
    def forward(ctx: Any, hidden_SBH: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The part, the same memory again, and the hidden states."""
        ctx.save_for_backward(rows)
        ctx.seq_length = hidden_SBH.shape[0]
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(hidden_SBH)  # by merge
        part_KBH = take_rows(hidden_SBH, rows)
        return part_KBH, part_KBH.detach(), hidden_SBH

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_part_KBH: Tensor | None, grad_residual_KBH: Tensor | None, grad_rest_SBH: Tensor | None
    ) -> tuple[Tensor | None, None]:
        """The sum of the part's two gradients, written to the kept rows of the rest's, whose memory it takes."""
        (rows,) = ctx.saved_tensors
        if grad_part_KBH is not None and grad_residual_KBH is not None:
            if grad_rest_SBH is not None:
                write_sums(grad_rest_SBH, rows, grad_residual_KBH, grad_part_KBH, None, rounds=False)
                return grad_rest_SBH, None
            grad_part_KBH = grad_residual_KBH + grad_part_KBH
        elif grad_part_KBH is None:
            grad_part_KBH = grad_residual_KBH
        return split_gradient(grad_part_KBH, grad_rest_SBH, rows, ctx.seq_length), None


class _MergeSum(torch.autograd.Function):
    """``merge_sum``."""

    @staticmethod
    def forward(
        ctx: Any,
        rest_SBH: Tensor,
        residual_KBH: Tensor,
        x_KBH: Tensor,
        bias_H: Tensor | None,
        rows: Tensor,
        rounds: bool,
    ) -> Tensor:
        """The rest, with the sum in its kept rows."""
        ctx.save_for_backward(rows)
        ctx.feeds_split = False
        ctx.mark_dirty(rest_SBH)
        write_sums(rest_SBH, rows, residual_KBH, x_KBH, bias_H, rounds=rounds)
        return rest_SBH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_SBH: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient itself for the rest, and its kept rows for all that was added up."""
        (rows,) = ctx.saved_tensors
        rest_needs, residual_needs, x_needs, bias_needs, *_ = ctx.needs_input_grad
        if rest_needs and not ctx.feeds_split:
            grad_SBH = copy_of(grad_SBH)  # autograd may have given the same gradient to others
        part_KBH = take_rows(grad_SBH, rows) if residual_needs or x_needs or bias_needs else None
        return (
            grad_SBH if rest_needs else None,
            part_KBH if residual_needs else None,
            part_KBH if x_needs else None,
            part_KBH.sum((0, 1)) if part_KBH is not None and bias_needs else None,
            None,
            None,
        )


def split_for_sum(hidden_SBH: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(part_KBH, residual_KBH, rest_SBH)``: ``gather_scatter.split_tokens`` with the part twice, in one memory.

    Each of the two is to be read once, and neither written to, so that the kernel adds up their gradients.
    """
    return _SplitForSum.apply(to_overwrite(hidden_SBH), rows)


def merge_sum(
    rest_SBH: Tensor, residual_KBH: Tensor, x_KBH: Tensor, bias_H: Tensor | None, rows: Tensor, *, rounds: bool
) -> Tensor:
    """[S, B, H]: ``rest_SBH`` of a split, overwritten with ``residual + (x + bias)`` at the kept positions.

    All have one type. ``rounds``: the sum in brackets is rounded to it, as where torch adds the bias by itself.
    """
    return _MergeSum.apply(rest_SBH, residual_KBH, x_KBH, bias_H, rows, rounds)
