"""Writes Llama folders in Hugging Face's format without its libraries: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tests.reference.gpt2_folder import random_plain, write_folder
from tests.reference.names import llama_tensors
from tests.reference.plain_gpt import PlainConfig

LLAMA = PlainConfig(rms_norm=True, swiglu=True, bias=False, groups=2, tied=False)
"""A model with two query heads per key-value head and untied embeddings."""


def llama_config(config: PlainConfig, **entries: Any) -> dict[str, Any]:
    """The config.json of a model of this shape with 16 positions; ``entries`` are added or replaced."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "num_hidden_layers": config.num_layers, "hidden_size": config.hidden_size, "head_dim": config.head_size,
        "num_attention_heads": config.heads, "num_key_value_heads": config.groups, "max_position_embeddings": 16,
        "intermediate_size": config.mlp_size, "vocab_size": config.vocab_size, "rms_norm_eps": config.epsilon,
        "attention_bias": config.bias, "mlp_bias": config.bias, "rope_theta": config.rotary_base,
        "tie_word_embeddings": config.tied, "bos_token_id": 0, "eos_token_id": 0,
    } | entries  # fmt: skip


def write_llama(folder: Path, config: PlainConfig = LLAMA, **entries: Any) -> dict[str, Tensor]:
    """Write a random model of this shape to ``folder``; return its tensors by Hugging Face's names."""
    tensors = llama_tensors(random_plain(config).state_dict(), config)
    write_folder(folder, llama_config(config, **entries), tensors)
    return tensors
