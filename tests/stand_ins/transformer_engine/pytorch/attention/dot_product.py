"""Attention with a causal mask, or without one.

A mask tensor is an error: Transformer Engine ignores it for these mask types. Under context parallelism a rank has an
early and a late part of the sequence, and keys and values of all ranks are gathered.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from ...signatures import recorded
from ..distributed import add_up_and_scatter, collective, gather, group_size
from ..module.base import TransformerEngineBaseModule

_NAME = "pytorch.attention.dot_product_attention.dot_product_attention.DotProductAttention"
_IGNORED = ("layer_number", "tp_size", "cp_stream", "cp_global_ranks", "cp_comm_type")


class DotProductAttention(TransformerEngineBaseModule):
    @recorded(f"{_NAME}.__init__", ignores=_IGNORED)
    def __init__(
        self, num_attention_heads, kv_channels, num_gqa_groups, attention_dropout, attn_mask_type, sequence_parallel,
        get_rng_state_tracker, tp_group, cp_group, softmax_scale,
    ) -> None:  # fmt: skip
        super().__init__()
        self.set_tensor_parallel_group(tp_group)
        num_groups = num_gqa_groups or num_attention_heads
        assert num_attention_heads % num_groups == 0, "heads must be divisible by the number of GQA groups"
        self.num_groups = num_groups // group_size(tp_group)
        self.head_size, self.attn_mask_type, self.attention_dropout = kv_channels, attn_mask_type, attention_dropout
        self.scale = softmax_scale or 1.0 / math.sqrt(kv_channels)
        self.cp_group = cp_group
        uses_current_stream = sequence_parallel or get_rng_state_tracker is None
        self.rng_states_tracker = None if uses_current_stream else get_rng_state_tracker()

    @recorded(f"{_NAME}.forward")
    def forward(
        self, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor, attention_mask: Tensor | None,
        attn_mask_type: str | None,
    ) -> Tensor:  # fmt: skip
        """[S, B, N·D] of queries [S, B, N, D], keys and values [S, B, G, D]."""
        mask_type = attn_mask_type or self.attn_mask_type
        assert query_layer.dtype == key_layer.dtype == value_layer.dtype, "all must have the same data type"
        assert key_layer.shape == value_layer.shape, "Keys and values must have the same shape"
        assert query_layer.shape[-1] == key_layer.shape[-1] == self.head_size, "Queries and keys have another size"
        assert key_layer.shape[-2] == self.num_groups, f"Keys and values must have {self.num_groups} heads"
        assert query_layer.shape[0] == key_layer.shape[0], "self-attention has as many keys as queries"
        assert mask_type in ("causal", "no_mask"), f"the stand-in does not compute attn_mask_type={mask_type}"
        assert attention_mask is None, f"Transformer Engine ignores an attention mask with attn_mask_type={mask_type}"
        group = self.cp_group
        keys, values = (collective(part, group, gather, add_up_and_scatter) for part in (key_layer, value_layer))
        allowed = None
        if mask_type == "causal":
            by_rank = _positions(query_layer.shape[0], group_size(group))
            allowed = by_rank.flatten() <= by_rank[0 if group is None else group.rank(), :, None]
        return self._attend(query_layer, keys, values, allowed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None) -> Tensor:
        heads_per_group = query.shape[2] // key.shape[2]
        key, value = (part.repeat_interleave(heads_per_group, dim=2) for part in (key, value))
        scores = torch.einsum("sbnd,tbnd->bnst", query * self.scale, key)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        shares = scores.float().softmax(-1).to(query.dtype)
        if self.attention_dropout and self.training:
            with nullcontext() if self.rng_states_tracker is None else self.rng_states_tracker.fork():
                shares = torch.nn.functional.dropout(shares, self.attention_dropout)
        return torch.einsum("bnst,tbnd->sbnd", shares, value).flatten(2)


def _positions(length: int, ranks: int) -> Tensor:
    """The positions in the whole sequence of the tokens that each rank holds, [ranks, length]."""
    if ranks == 1:
        return torch.arange(length)[None]
    parts = torch.arange(length * ranks).chunk(2 * ranks)
    return torch.stack([torch.cat((parts[rank], parts[-1 - rank])) for rank in range(ranks)])
