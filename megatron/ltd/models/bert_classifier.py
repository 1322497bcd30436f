"""A BERT classifier: the encoder of pretraining with a classification head instead of its heads.

    layers --> norm --> first token: dense, tanh (the pooler) --> dropout --> logits of the classes

Parameters of the encoder and the pooler have the same names as in pretraining, so that its checkpoints load.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron.ltd.models.bert import BertModel
from megatron.ltd.parallel.random import seed_weights

HEAD, POOLER = "binary_head.", "pooler."
"""Prefixes of the names of the parameters of classification head and pooler."""


class BertClassifier(BertModel):
    """Megatron-Core's BERT without the masked-LM head; its head for two sentences has ``num_classes`` outputs."""

    def __init__(self, config: TransformerConfig, *, num_classes: int, weights_seed: int, **options: Any) -> None:
        heads = {"add_binary_head": True, "share_embeddings_and_output_weights": False}
        super().__init__(config, weights_seed=weights_seed, **(options | heads))
        if self.post_process:
            self.lm_head, self.output_layer = _NoHead(), _NoLogits()
            seed_weights(weights_seed, config.num_layers + 2)
            self.binary_head = _Head(config, num_classes)

    def forward(self, tokens_BS: Tensor, attention_mask_BS: Tensor, types_BS: Tensor | None) -> Tensor:
        """Logits [B, C] on the last stage, hidden states before it."""
        outputs = super().forward(tokens_BS, attention_mask_BS, tokentype_ids=types_BS)
        return outputs[1] if self.post_process else outputs

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
        """The state without an output layer, which Megatron-Core's language model would require."""
        return MegatronModule.sharded_state_dict(self, prefix, sharded_offsets, metadata)


class _Head(nn.Linear):
    """Dropout and a linear layer, initialized as other weights."""

    def __init__(self, config: TransformerConfig, num_classes: int) -> None:
        super().__init__(config.hidden_size, num_classes, dtype=config.params_dtype)
        self.dropout = config.hidden_dropout
        config.init_method(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        return super().forward(F.dropout(pooled_BH, self.dropout, self.training))


class _NoHead(nn.Module):
    """Replaces the masked-LM head in Megatron-Core's forward pass."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class _NoLogits(nn.Module):
    """Replaces the output layer in Megatron-Core's forward pass: no logits of tokens are computed."""

    weight = None

    def forward(self, hidden_states: Tensor, weight: Tensor | None = None) -> tuple[Tensor, None]:
        return hidden_states, None
