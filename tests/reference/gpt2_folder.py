"""Writes GPT-2 folders in Hugging Face's format without its libraries: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference.names import gpt2_tensors
from tests.reference.plain_gpt import PlainConfig, PlainGPT


def gpt2_config(config: PlainConfig, **entries: Any) -> dict[str, Any]:
    """The config.json of a model of this shape without dropout; ``entries`` are added or replaced."""
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "n_layer": config.num_layers, "n_embd": config.hidden_size, "n_head": config.heads, "n_inner": config.mlp_size,
        "n_positions": config.learned_positions, "vocab_size": config.vocab_size, "layer_norm_epsilon": config.epsilon,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    } | entries  # fmt: skip


def random_plain(config: PlainConfig, seed: int = 0, std: float = 0.3) -> PlainGPT:
    """A plain GPT with every parameter random, including norms and biases, so that no two can be confused."""
    plain = PlainGPT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return plain


def write_gpt2(folder: Path, config: PlainConfig, **entries: Any) -> dict[str, Tensor]:
    """Write a random model of this shape to ``folder``; return its tensors by Hugging Face's names."""
    tensors = gpt2_tensors(random_plain(config).state_dict(), config)
    write_folder(folder, gpt2_config(config, **entries), tensors)
    return tensors


def write_folder(folder: Path, entries: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entries))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
