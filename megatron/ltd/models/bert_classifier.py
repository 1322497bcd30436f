"""A BERT that tells the class of a sample: the encoder of pretraining with a classifier in place of its heads.

    layers --> norm --> first token: dense, tanh (the pooler) --> dropout --> logits of the classes

Parameters of the encoder and the pooler carry their names of pretraining, so that its checkpoints load.
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
"""Beginnings of the names of the classifier's parameters, and of the pooler's."""


class BertClassifier(BertModel):
    """Megatron-Core's BERT without the masked-LM head, whose head for two sentences tells ``num_classes`` apart."""

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
        """Megatron-Core's, which for a language model would ask for the output layer."""
        return MegatronModule.sharded_state_dict(self, prefix, sharded_offsets, metadata)


class _Head(nn.Linear):
    """Dropout and a linear layer, drawn as other weights are."""

    def __init__(self, config: TransformerConfig, num_classes: int) -> None:
        super().__init__(config.hidden_size, num_classes, dtype=config.params_dtype)
        self.dropout = config.hidden_dropout
        config.init_method(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        return super().forward(F.dropout(pooled_BH, self.dropout, self.training))


class _NoHead(nn.Module):
    """Stands where Megatron-Core's forward pass calls the masked-LM head."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


class _NoLogits(nn.Module):
    """Stands where it then calls the output layer: no logits of tokens are computed."""

    weight = None

    def forward(self, hidden_states: Tensor, weight: Tensor | None = None) -> tuple[Tensor, None]:
        return hidden_states, None
