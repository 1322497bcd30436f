"""Runs on a device: their flags, tiny on a CPU, and their records."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.launch import launch
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support import REPOSITORY

SIZES = {
    "cuda": "--num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 256 --micro-batch-size 4 "
    "--global-batch-size 8 --train-iters 20 --ltd-min-kept-tokens 64 --ltd-growth-steps 15",
    "cpu": "--num-layers 3 --hidden-size 32 --num-attention-heads 2 --seq-length 64 --micro-batch-size 2 "
    "--global-batch-size 4 --train-iters 4 --ltd-min-kept-tokens 16 --ltd-growth-steps 3",
}
"""The sizes of runs, by device"""
IMPLEMENTATIONS = ["local", *(["transformer_engine"] if importlib.util.find_spec("transformer_engine") else [])]
"""What can be ``--transformer-impl`` here; Transformer Engine computes on CUDA only"""


def write_data(folder: Path) -> Path:
    """Write text to ``folder``, and return the dataset's prefix."""
    text = " ".join(f"number {n} follows {n - 1}." for n in range(5000))
    documents = (text[i : i + 4000] for i in range(0, len(text), 4000))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    preprocess(
        PreprocessConfig(input=(str(folder / "text.jsonl"),), output_prefix=str(folder / "d"), append_eod=True),
        TokenizerFiles(tokenizer_type="ByteTokenizer"),
    )
    return folder / "d_text_document"


def flags(device: str, data: Path, folder: Path, *more: object) -> list[str]:
    """The flags of a run on ``device`` that logs to ``folder``. If a flag is given twice, the later one counts."""
    return [
        *f"--device {device} --split 95,5,0 --tokenizer-type ByteTokenizer {SIZES[device]} --lr 1e-3".split(),
        *"--attention-dropout 0 --hidden-dropout 0 --eval-interval 20 --eval-iters 2 --random-ltd".split(),
        *"--transformer-impl local --position-embedding-type rope".split(),
        *("--data-path", str(data), "--log-dir", str(folder), *map(str, more)),
    ]


def train(device: str, data: Path, folder: Path, *more: object) -> list[dict[str, Any]]:
    """Train in this process; the records of all steps."""
    launch(parse_run_config(flags(device, data, folder, *more)))
    return records(folder)


def train_apart(device: str, data: Path, folder: Path, *more: object) -> list[dict[str, Any]]:
    """The same in a process of its own, for what must be set before CUDA is used; on the CPU in this process."""
    if device == "cpu":
        return train(device, data, folder, *more)
    script = REPOSITORY / "pretrain_gpt_ltd.py"
    command = [sys.executable, str(script), *flags(device, data, folder, *more)]
    subprocess.run(command, check=True)
    return records(folder)


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def column(steps: list[dict[str, Any]], name: str) -> list[Any]:
    return [step[name] for step in steps]


def stored_tensors(folder: Path, iteration: int) -> dict[str, Any]:
    """Checksums of the files of a checkpoint that hold tensors: equal if all weights and moments are."""
    manifest = checkpoint_files.read_manifest(checkpoint_files.checkpoint_path(folder, iteration)) or {}
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}
