"""The size of the model of each workload, from its flags and its number of outputs. No torch, and no data.

Both workloads and plans use these functions, so that they cannot differ.
"""

from __future__ import annotations

import dataclasses

from megatron.ltd.models.config import LayersConfig, ModelConfig
from megatron.ltd.models.encoder_config import BertModelConfig, ViTConfig
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.parameters import ModelParameters, ModelSizes, Parameters, layer_parameters, norm_parameters


def gpt_sizes(model: ModelConfig, vocab_size: int) -> ModelSizes:
    """A GPT with ``vocab_size`` ids, including the padding of the vocabulary."""
    shape = model.shape(vocab_size)
    hidden, norm_bias = shape.hidden_size, _norm_bias(model)
    words = Parameters(vocab_size * hidden)
    end = norm_parameters(hidden, norm_bias=norm_bias)
    parameters = ModelParameters(
        shape.num_layers,
        words + Parameters(whole=model.learned_positions * hidden),
        _layer(model, shape),
        end if model.tied_embeddings else end + words,
        words if model.tied_embeddings else Parameters(),
    )
    return ModelSizes(shape, parameters, f"vocabulary {vocab_size}")


def bert_sizes(model: BertModelConfig, vocab_size: int) -> ModelSizes:
    """A BERT with the masked-LM head, and if enabled the head for the order of two sentences."""
    gpt = gpt_sizes(model, vocab_size)
    hidden, norm_bias = model.hidden_size, _norm_bias(model)
    head = Parameters(vocab_size, hidden * hidden + hidden) + norm_parameters(hidden, norm_bias=norm_bias)
    if model.bert_binary_head:
        head += Parameters(whole=hidden * hidden + hidden + 2 * hidden + 2)
    parameters = dataclasses.replace(
        gpt.parameters,
        embedding=gpt.parameters.embedding + Parameters(whole=model.sentence_types * hidden),
        end=gpt.parameters.end + head,
    )
    return dataclasses.replace(gpt, parameters=parameters)


def classifier_sizes(model: BertModelConfig, vocab_size: int, num_classes: int) -> ModelSizes:
    """A BERT with a classification head of ``num_classes``."""
    shape = dataclasses.replace(model.shape(num_classes), head_tokens=1)
    hidden, norm_bias = model.hidden_size, _norm_bias(model)
    end = norm_parameters(hidden, norm_bias=norm_bias)
    parameters = ModelParameters(
        shape.num_layers,
        Parameters(vocab_size * hidden, (model.learned_positions + model.sentence_types) * hidden),
        _layer(model, shape),
        end + Parameters(whole=(hidden + 1) * (hidden + num_classes)),
    )
    return ModelSizes(shape, parameters, f"vocabulary {vocab_size}, {num_classes} classes")


def vit_sizes(model: ViTConfig, num_classes: int) -> ModelSizes:
    """A vision transformer with a head of ``num_classes``."""
    shape = model.shape(num_classes)
    hidden, norm_bias = shape.hidden_size, _norm_bias(model)
    parameters = ModelParameters(
        shape.num_layers,
        Parameters(whole=(shape.patch_values + 1 + 1 + shape.seq_length) * hidden),
        _layer(model, shape),
        norm_parameters(hidden, norm_bias=norm_bias) + Parameters(whole=(hidden + 1) * num_classes),
    )
    return ModelSizes(shape, parameters, f"{num_classes} classes")


def _norm_bias(model: LayersConfig) -> bool:
    return model.normalization == "LayerNorm"


def _layer(model: LayersConfig, shape: ModelShape) -> Parameters:
    return layer_parameters(
        shape,
        linear_bias=model.add_bias_linear,
        norm_bias=_norm_bias(model),
        qkv_bias=model.has_qkv_bias,
        head_norms=model.qk_layernorm,
    )
