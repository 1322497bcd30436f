#!/usr/bin/env python3
"""The data of TINY=1, a small GPT-2 and texts that come with Python.

    python examples/gpt2_finetune/tiny.py --out DIR

writes DIR/weights, a model with random weights in Hugging Face's format: config.json, model.safetensors, and vocab.json
and merges.txt of a tokenizer of 256 bytes and an end of text; and DIR/train.txt and valid.txt, some of Python's own
documentation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.ltd.errors import run_command, writes_to
from megatron.ltd.flags import Settings, flag, read_command

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, HIDDEN, HEADS, POSITIONS = 4, 64, 4, 64
TRAIN_CHARACTERS, VALID_CHARACTERS = 60_000, 15_000


@dataclass(frozen=True)
class TinyConfig(Settings):
    """data of TINY=1"""

    out: str = flag(None, metavar="DIR", help="folder to write to", required="give a folder to write to")


def main() -> None:
    """Read the flag, and write the model and the texts."""
    (config,) = read_command(__doc__, TinyConfig)
    with writes_to(f"--out {config.out}"):
        write_model(Path(config.out) / "weights")
        write_text(Path(config.out))


def write_text(folder: Path) -> None:
    """Write train.txt and valid.txt."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    (folder / "train.txt").write_text(text[:TRAIN_CHARACTERS], encoding="utf-8")
    (folder / "valid.txt").write_text(text[TRAIN_CHARACTERS:][:VALID_CHARACTERS], encoding="utf-8")


def write_model(folder: Path) -> None:
    """Make ``folder``, and write the model to it."""
    from safetensors.torch import save_file

    from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet

    vocabulary = {piece: token for token, piece in enumerate([*byte_alphabet(), END_OF_TEXT])}
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "n_layer": LAYERS, "n_embd": HIDDEN, "n_head": HEADS, "n_positions": POSITIONS, "n_inner": None,
        "vocab_size": len(vocabulary), "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
        "bos_token_id": vocabulary[END_OF_TEXT], "eos_token_id": vocabulary[END_OF_TEXT],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    save_file(tensors(len(vocabulary)), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def tensors(vocab_size: int) -> dict[str, Tensor]:
    """GPT-2's tensors by Hugging Face's names; linear weights are [in, out]."""
    import torch

    torch.manual_seed(0)
    found = {
        "wte.weight": 0.02 * torch.randn(vocab_size, HIDDEN),
        "wpe.weight": 0.01 * torch.randn(POSITIONS, HIDDEN),
        "ln_f.weight": torch.ones(HIDDEN),
        "ln_f.bias": torch.zeros(HIDDEN),
    }
    shapes = {
        "attn.c_attn": (HIDDEN, 3 * HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN),
        "mlp.c_fc": (HIDDEN, 4 * HIDDEN), "mlp.c_proj": (4 * HIDDEN, HIDDEN),
    }  # fmt: skip
    for layer in range(LAYERS):
        for norm in ("ln_1", "ln_2"):
            found |= {f"h.{layer}.{norm}.weight": torch.ones(HIDDEN), f"h.{layer}.{norm}.bias": torch.zeros(HIDDEN)}
        for name, (inputs, outputs) in shapes.items():
            found[f"h.{layer}.{name}.weight"] = 0.02 * torch.randn(inputs, outputs)
            found[f"h.{layer}.{name}.bias"] = torch.zeros(outputs)
    return {f"transformer.{name}": tensor for name, tensor in found.items()}


if __name__ == "__main__":
    run_command(main)
