"""Hugging Face's GPT-2: conversion of its config.json and of its tensors. No torch.

    theirs (l = h.0, h.1, ...)        ours (l = decoder.layers.0, ...)
    wte [V, H]                        embedding.word_embeddings [V padded, H]
    wpe [positions, H]                embedding.position_embeddings
    l.ln_1, l.ln_2 [H]                l.self_attention.linear_qkv.layer_norm_..., l.mlp.linear_fc1.layer_norm_...
    l.attn.c_attn [H, 3H]             l.self_attention.linear_qkv [3H, H]
    l.attn.c_proj [H, H]              l.self_attention.linear_proj [H, H]
    l.mlp.c_fc [H, 4H]                l.mlp.linear_fc1 [4H, H]
    l.mlp.c_proj [4H, H]              l.mlp.linear_fc2 [H, 4H]
    ln_f [H]                          decoder.final_layernorm

Besides the names there are two differences: theirs are ``Conv1D``, which stores [in, out]; and c_attn has all queries,
then all keys, then all values, while linear_qkv has query, key and value of each head together.

Our names are those in a checkpoint, with the number of the layer: the same with and without Transformer Engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.ltd.hugging_face.architecture import (
    HEAD,
    SAME,
    Architecture,
    Arrangement,
    Counterpart,
    Heads,
    Transposed,
    norm_weight,
)
from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.models.config import ModelConfig

_TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
_FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
_BUFFERS = r"h\.\d+\.attn\.(masked_)?bias"  # the causal mask, which older files hold


def model_flags(file: ConfigFile) -> dict[str, Any]:
    """The model of a config.json as fields of ``ModelConfig``. Raises ``UserError`` if it is not supported."""
    file.refuse_quantized()
    for name, value in _FIXED.items():
        if file.switch(name, value) is not value:
            raise file.refusal(name, f"only models with {str(value).lower()} are supported; use another model")
    activation = file.entries.get("activation_function", _TANH_GELUS[0])
    if activation not in (*_TANH_GELUS, "gelu"):
        raise file.refusal("activation_function", f"only gelu and {', '.join(_TANH_GELUS)} are supported")
    hidden_size, positions = file.size("n_embd"), file.size("n_positions")
    return {
        "num_layers": file.size("n_layer"),
        "hidden_size": hidden_size,
        "ffn_hidden_size": file.size("n_inner", 4 * hidden_size),
        "num_attention_heads": file.size("n_head"),
        "seq_length": positions,
        "max_position_embeddings": positions,
        "norm_epsilon": file.number("layer_norm_epsilon", 1e-5),
        "openai_gelu": activation in _TANH_GELUS,
        "tied_embeddings": file.switch("tie_word_embeddings", True),
        "attention_dropout": file.number("attn_pdrop", 0.1),
        "hidden_dropout": file.number("resid_pdrop", 0.1),
    }


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """The entries of config.json for a model that meets ``needs``."""
    return {
        "n_layer": model.num_layers,
        "n_embd": model.hidden_size,
        "n_inner": model.mlp_size,
        "n_head": model.num_attention_heads,
        "n_positions": model.learned_positions,
        "layer_norm_epsilon": model.norm_epsilon,
        "activation_function": _TANH_GELUS[0] if model.openai_gelu else "gelu",
        "attn_pdrop": model.attention_dropout,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": model.tied_embeddings,
        "scale_attn_weights": True,
    }


def counterparts(model: ModelConfig, vocab_size: int) -> dict[str, Counterpart]:
    """Their counterpart of each of our tensors. ``vocab_size`` is theirs, not padded."""
    hidden, mlp = model.hidden_size, model.mlp_size
    ours = {
        "embedding.word_embeddings.weight": Counterpart.same("wte.weight", vocab_size, hidden, is_vocabulary=True),
        "embedding.position_embeddings.weight": Counterpart.same("wpe.weight", model.learned_positions, hidden),
        **_norm("decoder.final_layernorm.", "ln_f.", model),
    }
    if not model.tied_embeddings:
        ours["output_layer.weight"] = Counterpart.same(HEAD, vocab_size, hidden, is_vocabulary=True)
    heads = Heads(model.num_attention_heads, 1, model.head_size, are_joined=True)
    for number in range(model.num_layers):
        to, of = f"decoder.layers.{number}.", f"h.{number}."
        ours |= _norm(f"{to}self_attention.linear_qkv.layer_norm_", f"{of}ln_1.", model)
        ours |= _linear(f"{to}self_attention.linear_qkv.", f"{of}attn.c_attn.", hidden, 3 * hidden, heads)
        ours |= _linear(f"{to}self_attention.linear_proj.", f"{of}attn.c_proj.", hidden, hidden)
        ours |= _norm(f"{to}mlp.linear_fc1.layer_norm_", f"{of}ln_2.", model)
        ours |= _linear(f"{to}mlp.linear_fc1.", f"{of}mlp.c_fc.", hidden, mlp)
        ours |= _linear(f"{to}mlp.linear_fc2.", f"{of}mlp.c_proj.", mlp, hidden)
    return ours


def needs(model: ModelConfig) -> Mapping[str, bool]:
    """The conditions for our model to be a GPT-2, as flags."""
    return {
        "--position-embedding-type learned_absolute": model.position_embedding_type == "learned_absolute",
        "--normalization LayerNorm": model.normalization == "LayerNorm",
        "no --swiglu": not model.swiglu,
        "no --disable-bias-linear": model.add_bias_linear,
        "no --qk-layernorm": not model.qk_layernorm,
        "no --group-query-attention": model.query_groups == model.num_attention_heads,
        "no --kv-channels but hidden / heads": model.head_size * model.num_attention_heads == model.hidden_size,
    }


def _norm(ours: str, theirs: str, model: ModelConfig) -> dict[str, Counterpart]:
    return {
        f"{ours}{kind}": Counterpart.same(f"{theirs}{kind}", model.hidden_size, arrangement=arrangement)
        for kind, arrangement in {"weight": norm_weight(model), "bias": SAME}.items()
    }


def _linear(ours: str, theirs: str, inputs: int, outputs: int, rows: Arrangement = SAME) -> dict[str, Counterpart]:
    """Weight and bias of a linear layer; ``rows`` arranges the rows [outputs, ...] of both."""
    weight, bias = f"{theirs}weight", f"{theirs}bias"
    return {
        f"{ours}weight": Counterpart((weight,), ((inputs, outputs),), (outputs, inputs), Transposed(rows)),
        f"{ours}bias": Counterpart((bias,), ((outputs,),), (outputs,), rows),
    }


GPT2 = Architecture(
    "gpt2", "GPT-2", "GPT2LMHeadModel", "transformer.", model_flags, config_entries, counterparts, _BUFFERS, needs
)
