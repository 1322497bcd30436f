"""Gather the kept tokens from the hidden states, and scatter them back: the two ends of a routed layer.

    hidden_SBH ──split──> part_KBH ──the layer──> part_KBH ──merge──> hidden_SBH
          └──────────────── rest_SBH (the same memory) ─────────────┘

``gather_tokens`` and ``scatter_tokens`` are the plain pair, each correct on its own. ``split_tokens`` and
``merge_tokens`` have the same values and gradients, but only if they are used together. They copy kept rows only:
merge writes the layer's output into the hidden states, and in the backward pass split writes its gradient into the
gradient that merge was given. A copy of all tokens is made where others may still read what would be overwritten:

    forward     of a stage's input, and of the input of a checkpointed function, which is recomputed from it
    backward    of the gradient that arrives from anything but the next layer's split

Kept indices are distinct, so that every write goes to its own row, without atomics and deterministic on a GPU too.

Masks and rotary embeddings of the kept tokens are rebuilt here too. Which tokens are kept is decided in ``sampling``.

Shapes: S sequence, K kept tokens, B micro-batch, H hidden, D rotary channels. ``kept_BK`` is int64, ascending and
distinct per row. Rows are those of ``[S, B, H]`` seen as ``[S * B, H]``: token s of sample b is row s * B + b.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor


def flat_rows(kept_BK: Tensor) -> Tensor:
    """Rows of the kept tokens in ``[S * B, H]``, in the order of ``[K, B, H]``: int64 [K * B].

    [N, B, K], the kept tokens of several layers, gives [N, K * B].
    """
    batch = kept_BK.shape[-2]
    return torch.add(torch.arange(batch, device=kept_BK.device), kept_BK.transpose(-1, -2), alpha=batch).flatten(-2)


def _as_rows(tokens: Tensor) -> Tensor:
    """[N, B, H] seen as [N * B, H]."""
    return tokens.reshape(-1, tokens.shape[-1])


def take_rows(tokens_SBH: Tensor, rows: Tensor) -> Tensor:
    """The given rows as [K, B, H]."""
    return _as_rows(tokens_SBH).index_select(0, rows).view(-1, *tokens_SBH.shape[1:])


def copy_of(tokens_SBH: Tensor) -> Tensor:
    """A contiguous copy.

    Not a view of anything: Megatron-Core frees the storage of what a pipeline stage has sent, and refuses views.
    """
    return tokens_SBH.clone(memory_format=torch.contiguous_format)


def write_rows(tokens_SBH: Tensor, rows: Tensor, part_KBH: Tensor) -> Tensor:
    """``tokens_SBH``, contiguous, after its given rows have been replaced."""
    tokens_SBH.view(-1, tokens_SBH.shape[-1]).index_copy_(0, rows, _as_rows(part_KBH))
    return tokens_SBH


def clear_rows(tokens_SBH: Tensor, rows: Tensor) -> Tensor:
    """A copy of ``tokens_SBH`` with zeros in the given rows."""
    return _as_rows(tokens_SBH).index_fill(0, rows, 0.0).view(tokens_SBH.shape)


def spread_rows(part_KBH: Tensor, rows: Tensor, seq_length: int) -> Tensor:
    """[S, B, H] with the part in the given rows and zeros elsewhere."""
    return write_rows(part_KBH.new_zeros(seq_length, *part_KBH.shape[1:]), rows, part_KBH)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SBH: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.seq_length = hidden_SBH.shape[0]
        return take_rows(hidden_SBH, rows)

    @staticmethod
    def backward(ctx: Any, grad_part_KBH: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return spread_rows(grad_part_KBH, rows, ctx.seq_length), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SBH: Tensor, part_KBH: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return write_rows(copy_of(hidden_SBH), rows, part_KBH)

    @staticmethod
    def backward(ctx: Any, grad_SBH: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (rows,) = ctx.saved_tensors
        hidden_needs, part_needs, _ = ctx.needs_input_grad
        return (
            clear_rows(grad_SBH, rows) if hidden_needs else None,
            take_rows(grad_SBH, rows) if part_needs else None,
            None,
        )


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SBH: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows)
        ctx.seq_length = hidden_SBH.shape[0]
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(hidden_SBH)  # by merge; so that hidden_SBH itself can be returned, and not a view of it
        return take_rows(hidden_SBH, rows), hidden_SBH

    @staticmethod
    def backward(ctx: Any, grad_part_KBH: Tensor | None, grad_rest_SBH: Tensor | None) -> tuple[Tensor | None, None]:
        (rows,) = ctx.saved_tensors
        return split_gradient(grad_part_KBH, grad_rest_SBH, rows, ctx.seq_length), None


def split_gradient(
    grad_part_KBH: Tensor | None, grad_rest_SBH: Tensor | None, rows: Tensor, seq_length: int
) -> Tensor | None:
    """The gradient of what was split, in the memory of ``grad_rest_SBH``."""
    if grad_rest_SBH is None:
        return None if grad_part_KBH is None else spread_rows(grad_part_KBH, rows, seq_length)
    if grad_part_KBH is None:
        return clear_rows(grad_rest_SBH, rows)
    return write_rows(grad_rest_SBH, rows, grad_part_KBH)  # the kept rows held merge's incoming gradient


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rest_SBH: Tensor, part_KBH: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.feeds_split = False
        ctx.mark_dirty(rest_SBH)
        return write_rows(rest_SBH, rows, part_KBH)

    @staticmethod
    def backward(ctx: Any, grad_SBH: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (rows,) = ctx.saved_tensors
        rest_needs, part_needs, _ = ctx.needs_input_grad
        if rest_needs and not ctx.feeds_split:
            grad_SBH = copy_of(grad_SBH)  # autograd may have given the same gradient to others
        return grad_SBH if rest_needs else None, take_rows(grad_SBH, rows) if part_needs else None, None


def _may_overwrite(hidden_SBH: Tensor) -> bool:
    """Whether ``hidden_SBH`` was computed in this pass, so that nothing but the next layer reads it.

    A leaf is the input of a stage or of a function that is recomputed. In the first pass of such a function, which is
    without gradients, its input is what requires a gradient.
    """
    made_here = not hidden_SBH.is_leaf if torch.is_grad_enabled() else not hidden_SBH.requires_grad
    return made_here and hidden_SBH.is_contiguous()


def gather_tokens(hidden_SBH: Tensor, kept_BK: Tensor) -> Tensor:
    """The kept tokens: [K, B, H], position k of sample b being ``hidden_SBH[kept_BK[b, k], b]``."""
    return _Gather.apply(hidden_SBH, flat_rows(kept_BK))


def scatter_tokens(hidden_SBH: Tensor, part_KBH: Tensor, kept_BK: Tensor) -> Tensor:
    """``hidden_SBH`` with its kept tokens replaced by ``part_KBH``: a new [S, B, H]; the other tokens pass through."""
    return _Scatter.apply(hidden_SBH, part_KBH, flat_rows(kept_BK))


def split_tokens(hidden_SBH: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``(part_KBH, rest_SBH)``: the kept tokens, and the hidden states for ``merge_tokens``.

    ``rows`` is ``flat_rows(kept_BK)``. ``rest_SBH`` must be passed to ``merge_tokens`` only, with the same rows: its
    gradient at kept positions is undefined. It is ``hidden_SBH`` itself if that was computed by an operation of this
    pass, and then ``hidden_SBH`` must not be read again: merge overwrites it.
    """
    return _Split.apply(to_overwrite(hidden_SBH), rows)


def to_overwrite(hidden_SBH: Tensor) -> Tensor:
    """``hidden_SBH`` for a split, or a copy of it where ``split_tokens`` must not let merge overwrite it."""
    if not _may_overwrite(hidden_SBH):
        hidden_SBH = copy_of(hidden_SBH)
    if hasattr(hidden_SBH.grad_fn, "feeds_split"):  # the previous layer's merge; its gradient will be split's own
        hidden_SBH.grad_fn.feeds_split = True  # type: ignore[union-attr]
    return hidden_SBH


def merge_tokens(rest_SBH: Tensor, part_KBH: Tensor, rows: Tensor) -> Tensor:
    """[S, B, H]: ``rest_SBH`` of ``split_tokens``, overwritten with ``part_KBH`` at the kept positions."""
    return _Merge.apply(rest_SBH, part_KBH, rows)


def gather_mask(attention_mask: Tensor | None, kept_BK: Tensor, query_BQ: Tensor | None = None) -> Tensor | None:
    """The attention mask among kept tokens.

    [B or 1, 1, S, S] gives [B, 1, K, K], rows and columns of each sample's own kept tokens; a padding mask
    [B or 1, 1, 1, S] gives [B, 1, 1, K]; None (causal or full attention without a mask tensor) stays None. Where the
    rows of the mask are a rank's share of the sequence, ``query_BQ`` are the kept rows among them: [B, 1, Q, K].
    """
    if attention_mask is None:
        return None
    assert attention_mask.dim() == 4 and attention_mask.shape[1] == 1, tuple(attention_mask.shape)
    mask_B1QS = attention_mask.expand(kept_BK.shape[0], -1, -1, -1)
    sample_B11 = torch.arange(kept_BK.shape[0], device=kept_BK.device)[:, None, None]
    columns_B1K = kept_BK[:, None, :]
    rows_BQ = kept_BK if query_BQ is None else query_BQ
    query_rows = 0 if attention_mask.shape[2] == 1 else rows_BQ[:, :, None]
    return mask_B1QS[sample_B11, 0, query_rows, columns_B1K].unsqueeze(1)


def entry_mask(attention_mask: Tensor | None, position_BQ: Tensor, query_BQ: Tensor, seq_length: int) -> Tensor:
    """The attention mask of kept queries that see all tokens: bool, True where attending is forbidden.

    [B or 1, 1, S, S] gives [B, 1, Q, S], the rows of each sample's own kept tokens ``query_BQ``; None, which is causal,
    gives the rows of the queries' positions in the whole sequence, ``position_BQ``. A padding mask [B or 1, 1, 1, S]
    is returned unchanged. Under context parallelism Q and ``query_BQ`` refer to the rank's share.
    """
    if attention_mask is None:
        columns_S = torch.arange(seq_length, device=position_BQ.device)
        return (columns_S > position_BQ[:, :, None]).unsqueeze(1)
    assert attention_mask.dim() == 4 and attention_mask.shape[1] == 1, tuple(attention_mask.shape)
    if attention_mask.shape[2] == 1:
        return attention_mask
    sample_B1 = torch.arange(query_BQ.shape[0], device=query_BQ.device)[:, None]
    return attention_mask.expand(query_BQ.shape[0], -1, -1, -1)[sample_B1, 0, query_BQ].unsqueeze(1)


RotaryEmbedding: TypeAlias = Tensor | tuple[Tensor, Tensor]


def gather_rotary(rotary: RotaryEmbedding | None, kept_BK: Tensor) -> RotaryEmbedding | None:
    """Rotary embeddings at the kept tokens' true positions.

    Megatron-Core's ``rotary_pos_emb`` [S, 1, 1, D] gives [K, B, 1, D], a pair of them (for queries and keys) a pair;
    None stays None.
    """
    if rotary is None:
        return None
    if isinstance(rotary, tuple):
        queries, keys = rotary
        queries_KB1D = _rotary_rows(queries, kept_BK)
        return queries_KB1D, queries_KB1D if keys is queries else _rotary_rows(keys, kept_BK)
    return _rotary_rows(rotary, kept_BK)


def _rotary_rows(rotary_S11D: Tensor, kept_BK: Tensor) -> Tensor:
    """[S, 1, 1, D] to [K, B, 1, D]."""
    assert rotary_S11D.dim() == 4 and rotary_S11D.shape[1:3] == (1, 1), tuple(rotary_S11D.shape)
    return rotary_S11D[kept_BK.t(), 0]
