"""Hugging Face's Llama, Qwen2, Qwen3 and Mistral: conversion of config.json and of tensors. No torch.

N heads of size D, G key-value heads, F the size of the MLP.

    theirs (l = layers.0, ...)                     ours (l = decoder.layers.0, ...)
    embed_tokens [V, H]                            embedding.word_embeddings [V padded, H]
    l.input_layernorm [H]                          l.self_attention.linear_qkv.layer_norm_weight
    l.self_attn.{q,k,v}_proj [N D | G D | G D, H]  l.self_attention.linear_qkv [(N + 2 G) D, H]
    l.self_attn.o_proj [H, N D]                    l.self_attention.linear_proj [H, N D]
    l.post_attention_layernorm [H]                 l.mlp.linear_fc1.layer_norm_weight
    l.mlp.{gate,up}_proj [F, H]                    l.mlp.linear_fc1 [2 F, H]
    l.mlp.down_proj [H, F]                         l.mlp.linear_fc2 [H, F]
    l.self_attn.{q,k}_norm [D], in Qwen3           l.self_attention.{q,k}_layernorm
    norm [H]                                       decoder.final_layernorm
    lm_head [V, H], if untied                      output_layer [V padded, H]

Both rotate the first half of a head with the second (not neighbours), by the same angles, so that rows within a head
keep their order. Scaled positions are those of Llama 3.1 (``rope_type`` llama3), by any factor. The families differ in
their biases and norms:

             biases of q, k, v    other biases         norms of queries and keys
    Llama    all linear layers have biases (attention_bias and mlp_bias), or none
    Mistral  none                 none                 none; without a window it is a Llama, and is exported as one
    Qwen2    yes                  none                 none
    Qwen3    none                 none                 yes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.hugging_face.architecture import (
    HEAD,
    SAME,
    Architecture,
    Arrangement,
    Counterpart,
    Heads,
    Joined,
    norm_weight,
)
from megatron.ltd.hugging_face.config_file import ConfigFile
from megatron.ltd.models.config import ModelConfig

_THETA = 10000.0
_PLAIN, _LLAMA3 = "default", "llama3"
_LLAMA3_FIXED = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Megatron-Core's scaling takes for granted; its ``factor`` is ``--rope-scaling-factor``."""
_NO_WINDOWS = "attention is to all earlier tokens here; use a model without a window"
_BUFFERS = r".*rotary_emb\.inv_freq"  # which older files hold


@dataclass(frozen=True)
class _Family:
    """What tells the models of this family apart."""

    model_type: str
    title: str
    class_name: str
    qkv_bias: bool = False
    head_norms: bool = False
    may_have_biases: bool = False
    """Whether all its linear layers can have biases."""
    default_head_size: int | None = None
    """Of a config.json without one; None for hidden / heads."""

    def model_flags(self, file: ConfigFile) -> dict[str, Any]:
        """The model of a config.json as fields of ``ModelConfig``. Raises ``UserError`` if it is not supported."""
        file.refuse_quantized()
        if file.entries.get("hidden_act", "silu") not in ("silu", "swish"):
            raise file.refusal("hidden_act", "only silu is supported")
        self._refuse_windows(file)
        hidden_size, heads = file.size("hidden_size"), file.size("num_attention_heads")
        groups, positions = file.size("num_key_value_heads", heads), file.size("max_position_embeddings")
        head_size = file.size("head_dim", self.default_head_size or max(1, hidden_size // heads))
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
            "add_bias_linear": self._bias(file),
            "add_qkv_bias": self.qkv_bias,
            "qk_layernorm": self.head_norms,
            "seq_length": positions,
            "position_embedding_type": "rope",
            **_rotary_flags(file),
            "tied_embeddings": file.switch("tie_word_embeddings", False),
            "attention_dropout": file.number("attention_dropout", 0.0),
            "hidden_dropout": 0.0,
        }

    def _bias(self, file: ConfigFile) -> bool:
        """Whether all linear layers have biases."""
        bias = file.switch("attention_bias", False)
        if bias and not self.may_have_biases:
            raise file.refusal("attention_bias", f"only {self.title} models with false are supported")
        if file.switch("mlp_bias", False) is not bias:
            raise file.refusal("mlp_bias", f"it must equal attention_bias, which is {str(bias).lower()}")
        return bias

    def _refuse_windows(self, file: ConfigFile) -> None:
        """Raise ``UserError`` for attention to a window of the last tokens."""
        is_used = file.switch("use_sliding_window", self.model_type == "mistral")
        if is_used and file.entries.get("sliding_window") is not None:
            raise file.refusal("sliding_window", _NO_WINDOWS)
        if "sliding_attention" in (file.entries.get("layer_types") or ()):
            raise file.refusal("layer_types", _NO_WINDOWS)

    def config_entries(self, model: ModelConfig) -> dict[str, Any]:
        """The entries of config.json for a model that meets ``needs``."""
        biases = {"attention_bias": model.add_bias_linear, "mlp_bias": model.add_bias_linear}
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
            **(biases if self.may_have_biases else {"attention_bias": False, "use_sliding_window": False}),
            "attention_dropout": model.attention_dropout,
            "initializer_range": model.init_method_std,
            "tie_word_embeddings": model.tied_embeddings,
            **_rotary_entries(model),
        }

    def needs(self, model: ModelConfig) -> Mapping[str, bool]:
        """The conditions for our model to be of this family, as flags."""
        hidden, heads = model.hidden_size, model.num_attention_heads
        free_heads = self.head_norms  # the size of Qwen3's heads is a number of its own
        return {
            "--position-embedding-type rope": model.position_embedding_type == "rope",
            "--normalization RMSNorm": model.normalization == "RMSNorm",
            "--swiglu": model.swiglu,
            "--rotary-percent 1.0": model.rotary_percent == 1.0,
            **({} if self.may_have_biases else {"--disable-bias-linear": not model.add_bias_linear}),
            _with("--add-qkv-bias", self.qkv_bias): model.has_qkv_bias == (self.qkv_bias or model.add_bias_linear),
            _with("--qk-layernorm", self.head_norms): model.qk_layernorm == self.head_norms,
            "a --hidden-size that --num-attention-heads divides": free_heads or hidden % heads == 0,
            **({"no --kv-channels but hidden / heads": model.head_size * heads == hidden} if self.qkv_bias else {}),
        }

    @property
    def architecture(self) -> Architecture:
        """The family as the conversion uses it."""
        return Architecture(
            self.model_type, self.title, self.class_name, "model.",
            self.model_flags, self.config_entries, counterparts, _BUFFERS, self.needs,
        )  # fmt: skip


def _with(flag: str, is_given: bool) -> str:
    return flag if is_given else f"no {flag}"


def _rotary_flags(file: ConfigFile) -> dict[str, Any]:
    """Base and scaling of the rotary positions, which newer versions store in a table."""
    tables = {name: file.entries[name] for name in ("rope_scaling", "rope_parameters") if file.entries.get(name)}
    factor: float | None = None
    for name, found in tables.items():
        kind = found.get("rope_type", found.get("type", _PLAIN)) if isinstance(found, dict) else None
        if kind not in (_PLAIN, _LLAMA3):
            raise file.refusal(name, f"only rotary positions of rope_type {_PLAIN} and {_LLAMA3} are supported")
        if kind == _LLAMA3:
            factor = _llama3_factor(file, name)
    table = ConfigFile(file.folder, {**file.entries, **tables.get("rope_parameters", {})})
    if table.number("partial_rotary_factor", 1.0) != 1.0:
        raise table.refusal("partial_rotary_factor", "whole heads are rotated; use a model without it")
    theta = table.number("rope_theta", _THETA)
    if theta < 1 or theta != int(theta):
        raise table.refusal("rope_theta", "--rotary-base is an integer, at least 1; use another model")
    scaling = {} if factor is None else {"use_rope_scaling": True, "rope_scaling_factor": factor}
    return {"rotary_base": int(theta), **scaling}


def _llama3_factor(file: ConfigFile, name: str) -> float:
    """The factor of Llama 3.1's scaling. Raises ``UserError`` without it, and for other settings than Llama's."""
    table = ConfigFile(file.folder, file.entries[name])
    for setting, value in _LLAMA3_FIXED.items():
        if table.number(setting, value) != value:
            raise file.refusal(name, f"only Llama 3's own {setting}, {value:g}, is supported")
    if "factor" not in table.entries:
        raise file.refusal(name, "its factor is missing; add it")
    return table.number("factor", 8.0)


def _rotary_entries(model: ModelConfig) -> dict[str, Any]:
    """In both spellings: ``rope_theta`` and ``rope_scaling`` are read by transformers 4, ``rope_parameters`` by 5."""
    base = {"rope_theta": float(model.rotary_base)}
    if not model.use_rope_scaling:
        return {**base, "rope_parameters": {"rope_type": _PLAIN, **base}}
    scaling = {"rope_type": _LLAMA3, "factor": model.rope_scaling_factor, **_LLAMA3_FIXED}
    return {**base, "rope_scaling": scaling, "rope_parameters": {**scaling, **base}}


def counterparts(model: ModelConfig, vocab_size: int) -> dict[str, Counterpart]:
    """Their counterparts of each of our tensors. ``vocab_size`` is theirs, not padded."""
    hidden, mlp, head_size, norm = model.hidden_size, model.mlp_size, model.head_size, norm_weight(model)
    ours = {
        "embedding.word_embeddings.weight": Counterpart.same(
            "embed_tokens.weight", vocab_size, hidden, is_vocabulary=True
        ),
        "decoder.final_layernorm.weight": Counterpart.same("norm.weight", hidden, arrangement=norm),
    }
    if not model.tied_embeddings:
        ours["output_layer.weight"] = Counterpart.same(HEAD, vocab_size, hidden, is_vocabulary=True)
    heads = Heads(model.query_groups, model.num_attention_heads // model.query_groups, head_size)
    inner = model.num_attention_heads * head_size
    kinds, qkv_kinds = (
        ("weight", "bias") if bias else ("weight",) for bias in (model.add_bias_linear, model.has_qkv_bias)
    )
    for number in range(model.num_layers):
        to, of = f"decoder.layers.{number}.", f"layers.{number}."
        attention, mlp_of = f"{of}self_attn.", f"{of}mlp."
        qkv = {f"{attention}{name}_proj": rows for name, rows in zip("qkv", heads.part_rows, strict=True)}
        gate_up = {f"{mlp_of}gate_proj": mlp, f"{mlp_of}up_proj": mlp}
        ours[f"{to}self_attention.linear_qkv.layer_norm_weight"] = Counterpart.same(
            f"{of}input_layernorm.weight", hidden, arrangement=norm
        )
        ours[f"{to}mlp.linear_fc1.layer_norm_weight"] = Counterpart.same(
            f"{of}post_attention_layernorm.weight", hidden, arrangement=norm
        )
        for name in "qk" if model.qk_layernorm else "":
            ours[f"{to}self_attention.{name}_layernorm.weight"] = Counterpart.same(
                f"{attention}{name}_norm.weight", head_size, arrangement=norm
            )
        ours |= _linear(f"{to}self_attention.linear_qkv.", qkv, hidden, heads, qkv_kinds)
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


LLAMA = _Family("llama", "Llama", "LlamaForCausalLM", may_have_biases=True).architecture
QWEN2 = _Family("qwen2", "Qwen2", "Qwen2ForCausalLM", qkv_bias=True).architecture
QWEN3 = _Family("qwen3", "Qwen3", "Qwen3ForCausalLM", head_norms=True, default_head_size=128).architecture
MISTRAL = _Family("mistral", "Mistral", "MistralForCausalLM").architecture
