"""Self-attention with queries of kept tokens only, and core attention on torch's fused kernel.

S queries, T keys, B micro-batch, N query heads, G key-value heads, D head size (N and G of this tensor-parallel rank).

    softmax(Q K^T / sqrt(D) + mask) V

Causal attention needs no mask tensor, and no kernel stores an S x T matrix (``attention_backend``); on a
CPU ``causal_blocks`` skips the upper triangle. Kept tokens stay in order, so that this is true for them too. An
explicit mask, for separated documents or padding, must include the causal part.

Under context parallelism each rank has an early and a late part of the queries (``routing.sequence_shard``), and
gathers all keys and values: each part attends to the keys up to its own end.

In generation the keys and values of earlier tokens come from a cache (``key_value_cache``). Not here: sliding windows.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron.ltd.layers.attention_backend import expands_groups, kernels_of
from megatron.ltd.layers.causal_blocks import causal_attention, gains_from_blocks
from megatron.ltd.layers.key_value_cache import current_cache
from megatron.ltd.routing.gather_scatter import gather_tokens


class RoutedSelfAttention(SelfAttention):
    """Megatron-Core's ``SelfAttention``, in which the kept tokens can attend to all tokens.

    The layer sets ``query_BK`` before each call: positions among the tokens of this rank, int64, ascending. Queries are
    then those of these tokens, keys and values those of all. None is plain self-attention. Queries, keys and values are
    projected together, so that the queries of the other tokens are computed and discarded.

    With ``apply_rope_fusion`` it rotates queries and keys too, whose angles Megatron-Core's fused kernel takes only if
    they are the same for all samples; those of kept tokens are not.
    """

    query_BK: Tensor | None = None
    _angles: tuple[Tensor, Tensor] | None = None
    """Of queries and keys during a call, [K or S, B or 1, 1, D], where they are rotated here."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *args: Any,
        rotary_pos_emb: Tensor | tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Output and bias; see Megatron-Core's ``Attention``."""
        if self.config.apply_rope_fusion and rotary_pos_emb is not None:
            self._angles = rotary_pos_emb if isinstance(rotary_pos_emb, tuple) else (rotary_pos_emb, rotary_pos_emb)
            rotary_pos_emb = None
        try:
            return super().forward(hidden_states, attention_mask, *args, rotary_pos_emb=rotary_pos_emb, **kwargs)
        finally:
            self._angles = None

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        """Queries [K, B, N, D], keys and values [S, B, G, D]; without fusion Megatron-Core rotates them after this."""
        query, key, *rest = super().get_query_key_value_tensors(*args, **kwargs)
        if self.query_BK is not None:
            query = gather_tokens(query.flatten(2), self.query_BK).unflatten(2, query.shape[2:])
        if self._angles is not None:
            query, key = self._rotate(query, self._angles[0]), self._rotate(key, self._angles[1])
        return (query, key, *rest)

    def _rotate(self, tokens_KBND: Tensor, angles: Tensor) -> Tensor:
        """By the fused kernel, for which tokens with angles of their own are one long sequence, without a copy."""
        group = self.pg_collection.cp
        if angles.shape[1] == 1:
            return apply_rotary_pos_emb(tokens_KBND, angles, self.config, cp_group=group)
        flat, flat_angles = (tensor.flatten(0, 1).unsqueeze(1) for tensor in (tokens_KBND, angles))
        return apply_rotary_pos_emb(flat, flat_angles, self.config, cp_group=group).view(tokens_KBND.shape)


class FusedAttention(MegatronModule):
    """A drop-in for Megatron-Core's ``DotProductAttention``; it has no parameters."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = layer_number
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.context_group = None
        if config.context_parallel_size > 1:
            assert pg_collection is not None, "context parallelism needs its process group"
            self.context_group = pg_collection.cp

    def forward(
        self,
        query_SBND: Tensor,
        key_TBGD: Tensor,
        value_TBGD: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: object | None = None,
    ) -> Tensor:
        """Attend; returns [S, B, N·D]. ``attention_mask`` is boolean, True where attending is forbidden.

        Under context parallelism S and T are this rank's share of the sequence, but the mask has columns for all of it.
        With a cache T are the new tokens, which also attend to the cached ones.
        """
        assert attention_bias is None and packed_seq_params is None, "neither is supported by this attention module"
        cache = current_cache()
        if cache is not None:
            assert attention_mask is None and self.context_group is None, "a cache needs whole causal sequences"
            key_TBGD, value_TBGD, attention_mask = cache.extend(self.layer_number, key_TBGD, value_TBGD)
        mask_type = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        causal = attention_mask is None and mask_type == AttnMaskType.causal
        if self.context_group is not None:
            key_TBGD, value_TBGD = gather_keys_and_values(key_TBGD, value_TBGD, self.context_group)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_TBGD, value_TBGD))
        if causal and self.context_group is not None:
            context_BNSD = self._causal_parts(query, key, value, self.context_group)
        else:
            allowed = None if attention_mask is None else attention_mask.logical_not()
            context_BNSD = self._attend(query, key, value, allowed, causal)
        seq_length, batch = query_SBND.shape[:2]
        return context_BNSD.permute(2, 0, 1, 3).reshape(seq_length, batch, -1)

    def _causal_parts(self, query: Tensor, key: Tensor, value: Tensor, group: ProcessGroup) -> Tensor:
        """Causal attention of the rank's two parts of the queries, each over the keys up to its own end."""
        rank, size = group.rank(), group.size()
        part_length = query.shape[2] // 2
        contexts = []
        for part, queries in zip((rank, 2 * size - 1 - rank), query.chunk(2, dim=2), strict=True):
            end = (part + 1) * part_length
            allowed = query.new_ones(part_length, end, dtype=torch.bool).tril(end - part_length)
            contexts.append(self._attend(queries, key[:, :, :end], value[:, :, :end], allowed, causal=False))
        return torch.cat(contexts, dim=2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, causal: bool) -> Tensor:
        """[B, N, S, D] of queries [B, N, S, D] over keys and values [B, G, T, D]."""
        dropout, backend = self.dropout if self.training else 0.0, self.config.attention_backend
        by_blocks = causal and dropout == 0.0 and backend != AttnBackend.unfused and gains_from_blocks(query)
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and (by_blocks or expands_groups(query, masked=allowed is not None)):
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if by_blocks:
            return causal_attention(query, key, value, self.softmax_scale)
        with self._dropout_rng(dropout), kernels_of(backend, query):
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=allowed,
                dropout_p=dropout,
                is_causal=causal,
                scale=self.softmax_scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )

    def _dropout_rng(self, dropout: float) -> contextlib.AbstractContextManager[object]:
        """Heads are spread over tensor-parallel ranks, so each rank drops from its own stream.

        Under sequence parallelism the whole transformer block already runs in that stream.
        """
        if dropout == 0.0 or self.config.sequence_parallel:
            return contextlib.nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()


def gather_keys_and_values(key_TBGD: Tensor, value_TBGD: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Keys and values of the whole sequence, in order, from each rank's early and late part: [T · ranks, B, G, D] both.

    Backward sums the gradients of all ranks into each rank's own share.
    """
    both_T2BGD = torch.stack((key_TBGD, value_TBGD), dim=1)
    by_rank = tensor_parallel.gather_from_sequence_parallel_region(both_T2BGD, group=group)
    early, late = by_rank.unflatten(0, (group.size(), 2, -1)).unbind(dim=1)
    in_order = torch.cat((early.flatten(0, 1), late.flip(0).flatten(0, 1)))
    return in_order[:, 0], in_order[:, 1]
