"""A reference BERT in plain PyTorch that drops tokens and layers, one sample at a time.

S sequence, K kept tokens of a layer, H hidden, V vocabulary. It consists of the plain GPT's layers without a causal
mask. Samples have no padding, because the outputs of real tokens must not depend on padding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tests.reference.plain_gpt import PlainConfig, PlainLayer, PlainNorm, draw_parameters, run_layers


class PlainBERT(nn.Module):
    """Embeddings, layers, final norm, masked-LM head, and with ``sentence_order`` a pooler and a second head."""

    def __init__(self, config: PlainConfig, *, sentence_order: bool, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, hidden)
        self.positions = nn.Embedding(config.learned_positions, hidden) if config.learned_positions else None
        self.types = nn.Embedding(2, hidden) if sentence_order else None
        self.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.num_layers))
        self.norm = PlainNorm(config)
        self.head_dense = nn.Linear(hidden, hidden)
        self.head_norm = PlainNorm(config)
        self.head = None if config.tied else nn.Linear(hidden, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.pooler = nn.Linear(hidden, hidden) if sentence_order else None
        self.order = nn.Linear(hidden, 2) if sentence_order else None
        draw_parameters(self, seed)

    def forward(
        self,
        tokens_S: Tensor,
        types_S: Tensor,
        *,
        kept: Mapping[int, Tensor] | None = None,
        entry_layers: Collection[int] = (),
        scale: Mapping[int, float] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits [S, V] of a sample without padding, and those of sentence order, [2], or None.

        ``kept``, ``entry_layers`` and ``scale`` are as in ``PlainGPT``; kept positions contain no padding.
        """
        x_SH = self.tokens(tokens_S)
        if self.positions is not None:
            x_SH = x_SH + self.positions(torch.arange(len(tokens_S)))
        if self.types is not None:
            x_SH = x_SH + self.types(types_S)
        x_SH = self.norm(run_layers(self.layers, x_SH, kept, entry_layers, scale))
        up_SH = self.head_dense(x_SH)
        head = self.tokens.weight if self.head is None else self.head.weight
        logits_SV = self.head_norm(0.5 * up_SH * (1 + torch.erf(up_SH / math.sqrt(2)))) @ head.T + self.head_bias
        if self.pooler is None or self.order is None:
            return logits_SV, None
        return logits_SV, self.order(torch.tanh(self.pooler(x_SH[0])))


def megatron_bert_tensors(plain: Mapping[str, Tensor], config: PlainConfig) -> dict[str, Tensor]:
    """The plain BERT's weights or gradients under the names of Megatron-Core's ``BertModel``."""
    from tests.reference.names import megatron_tensors

    names = {
        "head_dense": "lm_head.dense", "head_norm": "lm_head.layer_norm", "types": "embedding.tokentype_embeddings",
        "pooler": "pooler.dense", "order": "binary_head",
    }  # fmt: skip
    shared = megatron_tensors(plain, config)
    tensors = {name.replace("decoder.", "encoder."): tensor for name, tensor in shared.items()}
    for old, new in names.items():
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in plain:
                tensors[f"{new}.{kind}"] = plain[f"{old}.{kind}"]
    return tensors | {"output_layer.bias": plain["head_bias"]}
