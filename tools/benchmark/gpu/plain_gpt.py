"""A GPT-2 as people write it in plain PyTorch: modules of ``torch.nn``, and causal ``scaled_dot_product_attention``.

It has the parameters of our model of the same shape, but in separate modules and under other names. It has no dropout.

S sequence, B micro-batch, H hidden, N heads, D head size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.ltd.plan.accounting import ModelShape


class PlainGPT(nn.Module):
    """Tokens and labels, int64 [B, S], to the mean loss of a token."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.positions = nn.Embedding(shape.seq_length, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.hidden_size)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        x_BSH = self.tokens(tokens_BS) + self.positions(torch.arange(tokens_BS.shape[1], device=tokens_BS.device))
        for layer in self.layers:
            x_BSH = layer(x_BSH)
        logits_BSV = F.linear(self.norm(x_BSH), self.tokens.weight)
        return F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten())


class _Layer(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        hidden, mlp = shape.hidden_size, shape.ffn_hidden_size
        self.num_heads = shape.num_attention_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.projection = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)

    def forward(self, x_BSH: Tensor) -> Tensor:
        heads_3BNSD = self.qkv(self.attention_norm(x_BSH)).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query_BNSD, key_BNSD, value_BNSD = heads_3BNSD
        mixed_BNSD = F.scaled_dot_product_attention(query_BNSD, key_BNSD, value_BNSD, is_causal=True)
        x_BSH = x_BSH + self.projection(mixed_BNSD.transpose(1, 2).flatten(2))
        return x_BSH + self.down(F.gelu(self.up(self.mlp_norm(x_BSH))))
