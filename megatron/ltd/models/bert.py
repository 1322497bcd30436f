"""BERT: Megatron-Core's ``BertModel`` with our layer spec, pre-norm as there.

    tokens + positions + sentence types --> layers --> norm --+--> dense, GELU, norm --> logits of the hidden tokens
                                                              +--> first token: dense, tanh --> logits of the order

No token attends to padding, except a padding token to itself: every row of the mask then allows something, also among
the kept tokens of a sample that keeps padding, and no softmax is empty. Padding does not change real tokens.
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

# The norm of the head is not in a spec, and Megatron-Core's own refuses sequence parallelism.
bert_lm_head.LNImpl = Norm


Model = TypeVar("Model", bound=CoreBertModel)


class BertModel(CoreBertModel):
    """Megatron-Core's BERT with [B, 1, S, S] masks, and initial weights that do not depend on the layout.

    ``weights_seed`` is the seed of the weights after the last layer. A stage receives tokens [B, S], an attention mask
    [B, S], 1 for real tokens and 0 for padding, sentence types and labels; the last one returns losses [B, S] and the
    logits of sentence order [B, 2] (None without it).
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
        if self.position_embedding_type == "rope":  # Megatron-Core's model has no argument for the base
            self.rotary_pos_emb = RotaryEmbedding(
                kv_channels=config.kv_channels,
                rotary_percent=options["rotary_percent"],
                rotary_base=rotary_base,
                use_cpu_initialization=config.use_cpu_initialization,
                cp_group=pg_collection.cp,
            )
        if self.post_process:
            # A last stage that is not the first has drawn an embedding in between, which it overwrites later.
            seed_weights(weights_seed, config.num_layers + 1)
            heads = [self.lm_head.dense]
            if self.binary_head is not None:
                heads += [self.pooler.dense, self.binary_head]
            for linear in heads:
                config.init_method(linear.weight)

    def _sanity_check_attention_and_get_attn_mask_dimension(self) -> str:
        """The shape of the mask of our attention."""
        return "b1ss"

    def bert_extended_attention_mask(self, attention_mask: Tensor) -> Tensor:
        """[B, S], 0 for padding, to bool [B, 1, S, S], True where attending is forbidden."""
        return padding_mask(attention_mask == 0)


def padding_mask(padding_BS: Tensor) -> Tensor:
    """Attention to all tokens but padding, and to itself: bool [B, 1, S, S], True where query i must not see key j."""
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
    """This process's part of a model of class ``kind``, on the device of the run; see ``models.gpt.build_chunks``."""
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
    mask_type, layers = AttnMaskType.padding, model.layer_numbers
    return build_stages(make, model, config, mesh, seed=seed, mask_type=mask_type, masked_layers=layers)
