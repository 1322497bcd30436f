"""Renames and reshapes the plain GPT's weights or gradients as Megatron-Core and Hugging Face store them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.reference.plain_gpt import PlainConfig

Tensors = Mapping[str, Tensor]


def renamed(plain: Tensors, names: Mapping[str, str], prefix: str = "", target: str = "") -> dict[str, Tensor]:
    """The weight, and the bias if there is one, of each module in ``names``, under its new name."""
    return {
        f"{target}{new}.{kind}": plain[f"{prefix}{old}.{kind}"]
        for old, new in names.items()
        for kind in ("weight", "bias")
        if f"{prefix}{old}.{kind}" in plain
    }


def megatron_tensors(plain: Tensors, config: PlainConfig) -> dict[str, Tensor]:
    """The tensors as Megatron-Core names and fuses them.

    The queries, key and value of a key-value head are adjacent: [G, (N/G + 2) D, H]. In a gated MLP the gate comes
    first.
    """
    top = {"tokens": "embedding.word_embeddings", "norm": "decoder.final_layernorm", "head": "output_layer"}
    tensors = renamed(plain, top)
    if config.learned_positions:
        tensors |= renamed(plain, {"positions": "embedding.position_embeddings"})
    for number in range(config.num_layers):
        old, new = f"layers.{number}.", f"decoder.layers.{number}."
        tensors |= renamed(
            plain,
            {
                "attention_norm": "input_layernorm",
                "out": "self_attention.linear_proj",
                "mlp_norm": "pre_mlp_layernorm",
                "down": "mlp.linear_fc2",
            },
            old,
            new,
        )
        for kind in ("weight", "bias") if config.bias else ("weight",):
            parts = [
                plain[f"{old}{part}.{kind}"].unflatten(0, (config.groups, -1)) for part in ("query", "key", "value")
            ]
            tensors[f"{new}self_attention.linear_qkv.{kind}"] = torch.cat(parts, dim=1).flatten(0, 1)
            ups = ["gate", "up"] if config.swiglu else ["up"]
            tensors[f"{new}mlp.linear_fc1.{kind}"] = torch.cat([plain[f"{old}{up}.{kind}"] for up in ups])
    return tensors


def gpt2_tensors(plain: Tensors, config: PlainConfig) -> dict[str, Tensor]:
    """The tensors as Hugging Face's ``GPT2LMHeadModel`` names them; its ``Conv1D`` weights are [in, out]."""
    top = {"tokens": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f"}
    tensors = renamed(plain, top)
    for number in range(config.num_layers):
        old, new = f"layers.{number}.", f"transformer.h.{number}."
        tensors |= renamed(plain, {"attention_norm": "ln_1", "mlp_norm": "ln_2"}, old, new)
        linear = renamed(plain, {"out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}, old, new)
        for kind in ("weight", "bias"):
            parts = [plain[f"{old}{part}.{kind}"] for part in ("query", "key", "value")]
            linear[f"{new}attn.c_attn.{kind}"] = torch.cat(parts)
        tensors |= {name: tensor.T if name.endswith("weight") else tensor for name, tensor in linear.items()}
    return tensors


def llama_tensors(plain: Tensors, config: PlainConfig) -> dict[str, Tensor]:
    """The tensors as Hugging Face's ``LlamaForCausalLM`` names them."""
    tensors = renamed(plain, {"tokens": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"})
    names = {
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        **{old: f"self_attn.{new}_proj" for old, new in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))},
        **{part: f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }
    for number in range(config.num_layers):
        tensors |= renamed(plain, names, f"layers.{number}.", f"model.layers.{number}.")
    return tensors
