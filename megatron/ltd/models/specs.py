"""The modules of a layer.

Both specs are Megatron-Core's own GPT layer with our layer class; the local one also has our attention and norm, which
need neither Transformer Engine nor Apex. The layer of an encoder is the same with another mask type. Parameters have
the same names in the checkpoints of both.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Container, Sequence

import torch
from megatron.core.extensions.transformer_engine import TENorm
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron.ltd.errors import UserError
from megatron.ltd.layers.attention import FusedAttention, RoutedSelfAttention
from megatron.ltd.layers.norm import Norm
from megatron.ltd.layers.residual import ScaledResidual
from megatron.ltd.layers.routed_layer import RoutedTransformerLayer
from megatron.ltd.models.config import LayersConfig


def has_transformer_engine(device: torch.device) -> bool:
    """Whether Transformer Engine is installed, and the device one that it computes on."""
    return device.type == "cuda" and importlib.util.find_spec("transformer_engine") is not None


def uses_transformer_engine(config: LayersConfig, device: torch.device) -> bool:
    """Whether the layers are Transformer Engine's: if required, or with ``auto`` on CUDA if it is installed.

    Raises ``UserError`` if it is required and not available.
    """
    available = has_transformer_engine(device)
    if config.transformer_impl == "auto":
        return available
    if config.transformer_impl == "transformer_engine" and not available:
        raise UserError(
            "--transformer-impl transformer_engine: "
            + (
                "it is not installed"
                if device.type == "cuda"
                else f"it computes on CUDA, and this run on {device.type}"
            )
            + '; use --transformer-impl auto, or a CUDA device with "transformer-engine[pytorch]>=2.9,<2.12"'
        )
    return config.transformer_impl == "transformer_engine"


def layer_spec(
    config: LayersConfig,
    device: torch.device,
    *,
    weights_seed: int,
    mask_type: AttnMaskType,
    explicit_mask: bool,
) -> ModuleSpec:
    """The spec of one layer.

    ``weights_seed``: the seed of the initial weights, together with the layer's number.
    ``mask_type``: the mask of attention without a mask tensor. ``explicit_mask``: attention gets one (separated
    documents, padding, or kept tokens that attend to all tokens), which Transformer Engine's attention would ignore.
    """
    of_engine = uses_transformer_engine(config, device)
    if of_engine:
        spec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    else:
        spec = get_gpt_layer_local_spec(normalization=config.normalization)
    spec.module = RoutedTransformerLayer
    graphed = config.cuda_graph_impl == "local"
    spec.params = {
        "weights_seed": weights_seed,
        "graph_warmup_steps": config.cuda_graph_warmup_steps if graphed else None,
    }
    layer, attention = spec.submodules, spec.submodules.self_attention
    layer.self_attn_bda = layer.mlp_bda = ScaledResidual
    attention.module = RoutedSelfAttention
    attention.params["attn_mask_type"] = mask_type
    if not of_engine or explicit_mask or config.attention_backend == "local":
        attention.submodules.core_attention = FusedAttention
    if not of_engine:
        layer.input_layernorm = layer.pre_mlp_layernorm = Norm
        if config.qk_layernorm:
            attention.submodules.q_layernorm = attention.submodules.k_layernorm = Norm
    return spec


def block_spec(
    config: LayersConfig,
    device: torch.device,
    layer_numbers: Sequence[int],
    *,
    weights_seed: int,
    mask_type: AttnMaskType,
    masked_layers: Container[int],
) -> TransformerBlockSubmodules:
    """The spec of the layers of this stage, and of the norm after the last layer; see ``layer_spec``.

    ``masked_layers``: the numbers of the layers whose attention gets a mask tensor.
    """
    layers = [
        layer_spec(
            config, device, weights_seed=weights_seed, mask_type=mask_type, explicit_mask=number in masked_layers
        )
        for number in layer_numbers
    ]
    norm = TENorm if uses_transformer_engine(config, device) else Norm
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=norm)
