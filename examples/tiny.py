#!/usr/bin/env python3
"""The data of TINY=1: everything that an example needs, made from texts that come with Python.

    python examples/tiny.py --example gpt3 --out DIR

It writes to DIR:

gpt3           text-1.jsonl and text-2.jsonl to train on, a vocabulary of bytes (encoder.json, vocab.bpe), sentences
               whose last word is predicted (tasks/lambada_openai/test.jsonl), and the empty file done
bert_large     train.jsonl and valid.jsonl, a vocabulary of their words (words-vocab.txt), and sentences that are
               labelled by a word in them (labelled.jsonl and dev.jsonl)
gpt2_finetune  weights, a GPT-2 with random weights in Hugging Face's format (config.json, model.safetensors,
               vocab.json, merges.txt), and the texts train.txt and valid.txt
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.ltd.errors import run_command, writes_to
from megatron.ltd.flags import Settings, flag, read_command

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT_TOPICS, QUESTIONS = 5, 20
LAYERS, HIDDEN, HEADS, POSITIONS = 4, 64, 4, 64
TRAIN_CHARACTERS, VALID_CHARACTERS = 60_000, 15_000


@dataclass(frozen=True)
class TinyConfig(Settings):
    """data of TINY=1"""

    example: str = flag(
        None,
        choices=("bert_large", "gpt2_finetune", "gpt3"),
        help="the folder of examples/ that is to run",
        required="name an example",
    )
    out: str = flag(None, metavar="DIR", help="folder to write to", required="give a folder to write to")


def main() -> None:
    """Read the flags, and write the files; the last one shows that all are complete."""
    (config,) = read_command(__doc__, TinyConfig)
    write = {"bert_large": write_bert_large, "gpt2_finetune": write_gpt2_finetune, "gpt3": write_gpt3}[config.example]
    with writes_to(f"--out {config.out}"):
        write(Path(config.out))


def write_gpt3(out: Path) -> None:
    """Two files of documents, byte-level GPT-2 files, and a task in LAMBADA's format."""
    from megatron.ltd.data.sentences import split_sentences

    tasks = out / "tasks" / "lambada_openai"
    tasks.mkdir(parents=True, exist_ok=True)
    texts = _topics()
    train, held_out = texts[:-HELD_OUT_TOPICS], texts[-HELD_OUT_TOPICS:]
    _write_rows(out / "text-1.jsonl", ({"text": text} for text in train[::2]))
    _write_rows(out / "text-2.jsonl", ({"text": text} for text in train[1::2]))
    _write_bytes_vocabulary(out / "encoder.json", out / "vocab.bpe")
    sentences = [sentence.rstrip(".") for text in held_out for sentence in split_sentences(text)]
    questions = [sentence for sentence in sentences if 30 < len(sentence) < 90][:QUESTIONS]
    _write_rows(tasks / "test.jsonl", ({"text": question} for question in questions))
    (out / "done").touch()


def write_bert_large(out: Path) -> None:
    """Documents, a WordPiece vocabulary of them, and as many conditional sentences as others, with their labels."""
    from megatron.ltd.data.sentences import split_sentences
    from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer

    out.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(text.split()) for text in _topics()]
    for name, part in (("train", texts[:-HELD_OUT_TOPICS]), ("valid", texts[-HELD_OUT_TOPICS:])):
        _write_rows(out / f"{name}.jsonl", ({"text": text} for text in part))
    train_tokenizer(
        TrainTokenizerConfig(
            input=(str(out / "train.jsonl"),), vocab_size=1000, output_prefix=str(out / "words"),
            model_type="wordpiece", overwrite=True,
        )
    )  # fmt: skip
    rows = [
        {"text": sentence, "label": "conditional" if re.search(r"\bif\b", sentence, re.IGNORECASE) else "plain"}
        for text in texts
        for sentence in split_sentences(text)
        if len(sentence.split()) < 16
    ]
    conditional = [row for row in rows if row["label"] == "conditional"]
    plain = [row for row in rows if row["label"] == "plain"][:: max(1, len(rows) // len(conditional) - 1)]
    _write_rows(out / "labelled.jsonl", [*conditional[::2], *plain[::2]])
    _write_rows(out / "dev.jsonl", [*conditional[1::2], *plain[1::2]])


def write_gpt2_finetune(out: Path) -> None:
    """A model as Hugging Face stores GPT-2, and plain text."""
    from safetensors.torch import save_file

    weights = out / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_bytes_vocabulary(weights / "vocab.json", weights / "merges.txt")
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "n_layer": LAYERS, "n_embd": HIDDEN, "n_head": HEADS, "n_positions": POSITIONS, "n_inner": None,
        "vocab_size": vocab_size, "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
        "bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1,
    }  # fmt: skip
    save_file(_gpt2_tensors(vocab_size), weights / "model.safetensors")
    (weights / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    text = "\n".join(_topics())
    (out / "train.txt").write_text(text[:TRAIN_CHARACTERS], encoding="utf-8")
    (out / "valid.txt").write_text(text[TRAIN_CHARACTERS:][:VALID_CHARACTERS], encoding="utf-8")


def _topics() -> list[str]:
    """The topics of Python's help(), in the order of their names."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_bytes_vocabulary(vocabulary: Path, merges: Path) -> int:
    """Write GPT-2's files for a tokenizer of 256 bytes and, last, an end of text. Returns their number."""
    from megatron.ltd.tokenizers.gpt2_bpe import END_OF_TEXT, byte_alphabet

    pieces = [*byte_alphabet(), END_OF_TEXT]
    vocabulary.write_text(json.dumps({piece: token for token, piece in enumerate(pieces)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return len(pieces)


def _gpt2_tensors(vocab_size: int) -> dict[str, Tensor]:
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
