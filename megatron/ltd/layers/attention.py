"""Core attention on ``torch.nn.functional.scaled_dot_product_attention``.

S queries, T keys, B micro-batch, N query heads, G key-value heads, D head size (N and G of this tensor-parallel rank).

    softmax(Q K^T / sqrt(D) + mask) V

Causal attention needs no mask tensor, and no kernel keeps an S x T matrix (flash attention on CUDA and on CPU); on a
CPU ``causal_blocks`` sees to it that the upper triangle is skipped. Kept tokens stay in order, so that holds for them
too. An explicit mask, for separated documents or padding, must hold the causal part itself.

Not here: context parallelism, key-value caches, sliding windows.
"""

from __future__ import annotations

import contextlib

import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron.ltd.layers.causal_blocks import causal_attention, gains_from_blocks


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
        pg_collection: object | None = None,
    ) -> None:
        super().__init__(config=config)
        assert config.context_parallel_size == 1, "this attention module sees one shard of the sequence only"
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

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
        """Attend; returns [S, B, N·D]. ``attention_mask`` is boolean, True where attending is forbidden."""
        assert attention_bias is None and packed_seq_params is None, "neither is supported by this attention module"
        mask_type = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_TBGD, value_TBGD))
        dropout = self.dropout if self.training else 0.0
        causal = attention_mask is None and mask_type == AttnMaskType.causal
        if causal and dropout == 0.0 and gains_from_blocks(query):
            groups = query.shape[1] // key.shape[1]
            if groups > 1:
                key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
            context_BNSD = causal_attention(query, key, value, self.softmax_scale)
        else:
            with self._dropout_rng(dropout):
                context_BNSD = F.scaled_dot_product_attention(
                    query,
                    key,
                    value,
                    attn_mask=None if attention_mask is None else attention_mask.logical_not(),
                    dropout_p=dropout,
                    is_causal=causal,
                    scale=self.softmax_scale,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
        seq_length, batch = query_SBND.shape[:2]
        return context_BNSD.permute(2, 0, 1, 3).reshape(seq_length, batch, -1)

    def _dropout_rng(self, dropout: float) -> contextlib.AbstractContextManager[object]:
        """Heads are spread over tensor-parallel ranks, so each rank drops from its own stream.

        Under sequence parallelism the whole transformer block already runs in that stream.
        """
        if dropout == 0.0 or self.config.sequence_parallel:
            return contextlib.nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()
