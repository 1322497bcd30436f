"""Hugging Face's Llama: conversion of its config.json and of its tensors. No torch.

N heads of size D, G key-value heads, F the size of the MLP.

    theirs (l = layers.0, ...)                     ours (l = decoder.layers.0, ...)
    embed_tokens [V, H]                            embedding.word_embeddings [V padded, H]
    l.input_layernorm [H]                          l.self_attention.linear_qkv.layer_norm_weight
    l.self_attn.{q,k,v}_proj [N D | G D | G D, H]  l.self_attention.linear_qkv [(N + 2 G) D, H]
    l.self_attn.o_proj [H, N D]                    l.self_attention.linear_proj [H, N D]
    l.post_attention_layernorm [H]                 l.mlp.linear_fc1.layer_norm_weight
    l.mlp.{gate,up}_proj [F, H]                    l.mlp.linear_fc1 [2 F, H]
    l.mlp.down_proj [H, F]                         l.mlp.linear_fc2 [H, F]
    norm [H]                                       decoder.final_layernorm
    lm_head [V, H], if untied                      output_layer [V padded, H]

Both rotate the first half of a head with the second (not neighbours), by the same angles, so that rows within a head
keep their order. All linear layers have biases (``attention_bias`` and ``mlp_bias``), or none. Scaled positions
(``rope_scaling``, as in Llama 3.1 and later) are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.ltd.hugging_face.architecture import HEAD, SAME, Architecture, Arrangement, Counterpart, Heads, Joined
from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.models.config import ModelConfig

_THETA = 10000.0
_PLAIN_ROPE = "default"
_BUFFER = "rotary_emb.inv_freq"  # which older files hold


def model_flags(file: ConfigFile) -> dict[str, Any]:
    """The model of a config.json as fields of ``ModelConfig``. Raises ``UserError`` if it is not supported."""
    file.refuse_quantized()
    if file.entries.get("hidden_act", "silu") not in ("silu", "swish"):
        raise file.refusal("hidden_act", "only silu is supported")
    bias = file.switch("attention_bias", False)
    if file.switch("mlp_bias", False) is not bias:
        raise file.refusal("mlp_bias", f"it must equal attention_bias, which is {str(bias).lower()}")
    hidden_size, heads = file.size("hidden_size"), file.size("num_attention_heads")
    groups, positions = file.size("num_key_value_heads", heads), file.size("max_position_embeddings")
    head_size = file.size("head_dim", max(1, hidden_size // heads))
    shared = groups != heads
    return {
        "num_layers": file.size("num_hidden_layers"),
        "hidden_size": hidden_size,
        "ffn_hidden_size": file.size("intermediate_size"),
        "num_attention_heads": heads,
        "group_query_attention": shared,
        "num_query_groups": groups if shared else 1,
        "kv_channels": head_size if head_size * heads != hidden_size else None,
        "normalization": "RMSNorm",
        "norm_epsilon": file.number("rms_norm_eps", 1e-6),
        "swiglu": True,
        "add_bias_linear": bias,
        "seq_length": positions,
        "position_embedding_type": "rope",
        "rotary_base": _rotary_base(file),
        "tied_embeddings": file.switch("tie_word_embeddings", False),
        "attention_dropout": file.number("attention_dropout", 0.0),
        "hidden_dropout": 0.0,
    }


def _rotary_base(file: ConfigFile) -> int:
    """The base of the rotary positions, which newer versions store in a table. Raises ``UserError`` for scaled ones."""
    for name in ("rope_scaling", "rope_parameters"):
        table = file.entries.get(name)
        if table is None:
            continue
        if not isinstance(table, dict) or table.get("rope_type", table.get("type", _PLAIN_ROPE)) != _PLAIN_ROPE:
            raise file.refusal(name, f"only plain rotary positions (rope_type {_PLAIN_ROPE}) are supported")
    table = ConfigFile(file.folder, {**file.entries, **(file.entries.get("rope_parameters") or {})})
    if table.number("partial_rotary_factor", 1.0) != 1.0:
        raise table.refusal("partial_rotary_factor", "Llama rotates whole heads; use a model without it")
    theta = table.number("rope_theta", _THETA)
    if theta < 1 or theta != int(theta):
        raise table.refusal("rope_theta", "--rotary-base is an integer, at least 1; use another model")
    return int(theta)


def config_entries(model: ModelConfig) -> dict[str, Any]:
    """The entries of config.json for a model that meets ``needs``."""
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.mlp_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "max_position_embeddings": model.seq_length,
        "rms_norm_eps": model.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": model.add_bias_linear,
        "mlp_bias": model.add_bias_linear,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": model.tied_embeddings,
        # In both spellings: the first is read by transformers 4, the second by 5.
        "rope_theta": float(model.rotary_base),
        "rope_parameters": {"rope_type": _PLAIN_ROPE, "rope_theta": float(model.rotary_base)},
    }


def counterparts(model: ModelConfig, vocab_size: int) -> dict[str, Counterpart]:
    """Their counterparts of each of our tensors. ``vocab_size`` is theirs, not padded."""
    hidden, mlp, head_size = model.hidden_size, model.mlp_size, model.head_size
    ours = {
        "embedding.word_embeddings.weight": Counterpart.same(
            "embed_tokens.weight", vocab_size, hidden, is_vocabulary=True
        ),
        "decoder.final_layernorm.weight": Counterpart.same("norm.weight", hidden),
    }
    if not model.tied_embeddings:
        ours["output_layer.weight"] = Counterpart.same(HEAD, vocab_size, hidden, is_vocabulary=True)
    heads = Heads(model.query_groups, model.num_attention_heads // model.query_groups, head_size)
    inner = model.num_attention_heads * head_size
    kinds = ("weight", "bias") if model.add_bias_linear else ("weight",)
    for number in range(model.num_layers):
        to, of = f"decoder.layers.{number}.", f"layers.{number}."
        attention, mlp_of = f"{of}self_attn.", f"{of}mlp."
        qkv = {f"{attention}{name}_proj": rows for name, rows in zip("qkv", heads.part_rows, strict=True)}
        gate_up = {f"{mlp_of}gate_proj": mlp, f"{mlp_of}up_proj": mlp}
        ours[f"{to}self_attention.linear_qkv.layer_norm_weight"] = Counterpart.same(
            f"{of}input_layernorm.weight", hidden
        )
        ours[f"{to}mlp.linear_fc1.layer_norm_weight"] = Counterpart.same(f"{of}post_attention_layernorm.weight", hidden)
        ours |= _linear(f"{to}self_attention.linear_qkv.", qkv, hidden, heads, kinds)
        ours |= _linear(f"{to}self_attention.linear_proj.", {f"{attention}o_proj": hidden}, inner, SAME, kinds)
        ours |= _linear(f"{to}mlp.linear_fc1.", gate_up, hidden, Joined((mlp, mlp)), kinds)
        ours |= _linear(f"{to}mlp.linear_fc2.", {f"{mlp_of}down_proj": hidden}, mlp, SAME, kinds)
    return ours


def _linear(
    ours: str, theirs: Mapping[str, int], inputs: int, arrangement: Arrangement, kinds: tuple[str, ...]
) -> dict[str, Counterpart]:
    """Weight, and if there is one bias, of our linear layer for ``theirs``, given by name and number of rows."""
    rows, columns = tuple(theirs.values()), {"weight": (inputs,), "bias": ()}
    return {
        f"{ours}{kind}": Counterpart(
            tuple(f"{name}.{kind}" for name in theirs),
            tuple((count, *columns[kind]) for count in rows),
            (sum(rows), *columns[kind]),
            arrangement,
        )
        for kind in kinds
    }


def is_left_out(name: str, model: ModelConfig) -> bool:
    """Whether one of their tensors needs no counterpart: a buffer, or a copy of the tied embedding."""
    return name.endswith(_BUFFER) or (model.tied_embeddings and name == HEAD)


def needs(model: ModelConfig) -> Mapping[str, bool]:
    """The conditions for our model to be a Llama, as flags."""
    return {
        "--position-embedding-type rope": model.position_embedding_type == "rope",
        "--normalization RMSNorm": model.normalization == "RMSNorm",
        "--swiglu": model.swiglu,
        "--rotary-percent 1.0": model.rotary_percent == 1.0,
        "a --hidden-size that --num-attention-heads divides": model.hidden_size % model.num_attention_heads == 0,
    }


LLAMA = Architecture(
    "llama", "Llama", "LlamaForCausalLM", "model.", model_flags, config_entries, counterparts, is_left_out, needs
)
