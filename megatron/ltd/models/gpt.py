"""GPT: Megatron-Core's ``GPTModel`` with our layer spec."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.transformer import build_stages
from megatron.ltd.parallel.mesh import Mesh


def build_chunks(
    model: ModelConfig,
    config: TransformerConfig,
    padded_vocab_size: int,
    mesh: Mesh,
    *,
    seed: int,
    masked_layers: Collection[int] = (),
) -> list[GPTModel]:
    """This process's part of the model, on the device of the run: one stage, or the chunks of an interleaved pipeline.

    Initial weights are a function of ``seed`` and of the layer, not of the stage. ``masked_layers``: the numbers of
    the layers whose attention gets a mask, from the batch or made by the layer.
    """
    make = partial(
        GPTModel,
        vocab_size=padded_vocab_size,
        max_sequence_length=model.learned_positions or model.seq_length,
        share_embeddings_and_output_weights=model.tied_embeddings,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percent,
        rotary_base=model.rotary_base,
        rope_scaling=model.use_rope_scaling,
        rope_scaling_factor=model.rope_scaling_factor,
    )
    mask_type = AttnMaskType.causal
    return build_stages(make, model, config, mesh, seed=seed, mask_type=mask_type, masked_layers=masked_layers)
