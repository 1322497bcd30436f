"""The BERT of a run: Megatron-Core's ``BertModel`` with our layer spec, pre-norm as there.

    tokens + positions + sentence types --> layers --> norm --+--> dense, GELU, norm --> logits of the hidden tokens
                                                              +--> first token: dense, tanh --> were A and B swapped?

Padding is never attended to, but by itself: so every row of the mask allows something, also among the kept tokens of a
sample that keeps padding, and no softmax is empty. Real tokens compute as if there were no padding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from megatron.core.models.bert import bert_lm_head
from megatron.core.models.bert.bert_model import BertModel as CoreBertModel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron.ltd.layers.norm import Norm
from megatron.ltd.models.encoder_config import BertModelConfig
from megatron.ltd.models.transformer import build_stages
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.parallel.random import seed_weights

# The head's norm is no part of a spec, and core's own refuses sequence parallelism.
bert_lm_head.LNImpl = Norm


Model = TypeVar("Model", bound=CoreBertModel)


class BertModel(CoreBertModel):
    """Megatron-Core's BERT on [B, 1, S, S] masks, whose initial weights no layout changes.

    ``weights_seed`` draws those after the last layer. A stage gets tokens [B, S], an attention mask [B, S], 1 for real
    tokens and 0 for padding, sentence types and labels; the last one answers losses [B, S] and the logits of sentence
    order [B, 2] (None without it).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *arguments: Any,
        weights_seed: int,
        rotary_base: int,
        pg_collection: ProcessGroupCollection,
        **options: Any,
    ) -> None:
        super().__init__(config, *arguments, pg_collection=pg_collection, **options)
        if self.position_embedding_type == "rope":  # core's model cannot be told the base
            self.rotary_pos_emb = RotaryEmbedding(
                kv_channels=config.kv_channels,
                rotary_percent=options["rotary_percent"],
                rotary_base=rotary_base,
                use_cpu_initialization=config.use_cpu_initialization,
                cp_group=pg_collection.cp,
            )
        if self.post_process:
            # A last stage of several draws an embedding of its own in between, which it then overwrites.
            seed_weights(weights_seed, config.num_layers + 1)
            heads = [self.lm_head.dense]
            if self.binary_head is not None:
                heads += [self.pooler.dense, self.binary_head]
            for linear in heads:
                config.init_method(linear.weight)

    def _sanity_check_attention_and_get_attn_mask_dimension(self) -> str:
        """The mask that our attention takes."""
        return "b1ss"

    def bert_extended_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """[B, S], 0 for padding, to bool [B, 1, S, S], True where attending is forbidden."""
        return padding_mask(attention_mask == 0)


def padding_mask(padding_BS: Tensor) -> Tensor:
    """Attention to all but padding: bool [B, 1, S, S], True where query i must not see key j; each sees itself."""
    others_SS = ~torch.eye(padding_BS.shape[1], dtype=torch.bool, device=padding_BS.device)
    return (padding_BS[:, None, :] & others_SS)[:, None]


def build_bert_chunks(
    kind: Callable[..., Model],
    model: BertModelConfig,
    config: TransformerConfig,
    padded_vocab_size: int,
    mesh: Mesh,
    *,
    seed: int,
) -> list[Model]:
    """This process's part of a model of this ``kind`` on the run's device; see ``models.gpt.build_chunks``."""
    make = partial(
        kind,
        num_tokentypes=model.sentence_types,
        vocab_size=padded_vocab_size,
        max_sequence_length=model.learned_positions or model.seq_length,
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percent,
        rotary_base=model.rotary_base,
        add_binary_head=model.bert_binary_head,
        weights_seed=seed,
    )
    return build_stages(make, model, config, mesh, seed=seed, mask_type=AttnMaskType.padding, explicit_mask=True)
