"""Helpers of the end-to-end tests: a tiny run, its exit status and error line, and changes to checkpoints.

Every run executes ``pretrain_gpt_ltd.py`` in this process under the same wrapper as the command line, so that exit
status and error line are those that a user sees.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.config import Entry
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.errors import run_command
from megatron.ltd.launch import launch
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.training.stopwatch import TIMINGS
from megatron.ltd.workloads import GPT
from tests.support import small_sentences

TINY = [
    "--device", "cpu", "--tokenizer-type", "ByteTokenizer", "--num-layers", "3",
    "--hidden-size", "16", "--num-attention-heads", "2", "--seq-length", "16",
    "--micro-batch-size", "2", "--global-batch-size", "4", "--train-iters", "6", "--lr", "1e-3",
    "--lr-decay-style", "cosine", "--lr-warmup-iters", "2", "--eval-interval", "3",
    "--eval-iters", "1", "--random-ltd", "--ltd-min-kept-tokens", "4",
    "--ltd-granularity", "4", "--ltd-growth-steps", "5",
]  # fmt: skip


def write_data(folder: Path, name: str = "train", seed: str = "lorem ipsum ") -> str:
    """Write a byte-level dataset of a few hundred tokens; return its prefix."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps({"text": f"{seed}{number} " * 8}) + "\n" for number in range(20)))
    config = PreprocessConfig(input=(str(source),), output_prefix=str(folder / name), append_eod=True)
    return next(iter(preprocess(config, TokenizerFiles("ByteTokenizer")).cards))


def tiny_flags(data: str, *more: object) -> list[str]:
    """The flags of the tiny run on ``data``, and ``more``. If a flag is given twice, the later one counts."""
    return [*TINY, "--train-data-path", data, "--valid-data-path", data, *map(str, more)]


def bert_flags(folder: Path, *data: str) -> list[str]:
    """The flags of one step of a small BERT on ``data``, or on sentences that are written to ``folder``."""
    prefix, vocabulary = small_sentences(folder)
    words = ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary]
    model = "--device cpu --num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32".split()
    steps = "--micro-batch-size 2 --train-iters 1 --lr 1e-3 --eval-iters 0".split()
    return [*(data or ("--data-path", prefix)), *words, *model, *steps]


def run_status(flags: Sequence[str], program: Any = None, workload: Entry = GPT) -> tuple[int, str]:
    """Run the workload's script (or ``program`` on its parsed flags); return its exit status and standard error."""
    return ending(
        lambda: run_command(lambda: (program or launch)(parse_run_config(flags, workload))), "pretrain_gpt_ltd.py"
    )


def ending(program: Callable[[], object], *words: object) -> tuple[int, str]:
    """Call ``program`` with ``words`` as the command line; return its exit status and standard error."""
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*map(str, words)])
            program()
    except SystemExit as end:
        return int(end.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


def refusal(flags: Sequence[str]) -> str:
    """The single error line of a run that fails with exit status 2."""
    status, said = run_status(flags)
    lines = said.splitlines()
    assert status == 2 and len(lines) == 1, (status, said)
    return lines[0].removeprefix("pretrain_gpt_ltd.py: error: ")


def snapshot(folder: Path) -> dict[str, bytes]:
    """The content of every file under ``folder``, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def metrics(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """The records of metrics.jsonl by kind and iteration, without timings; a later record replaces an earlier one."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["kind"] != "run":
            timeless = {name: value for name, value in line.items() if name not in TIMINGS}
            lines[line["kind"], line["iteration"]] = timeless
    return lines


def reseal(checkpoint: Path) -> None:
    """Write a new manifest for a checkpoint, so that a test's changes are not detected as damage."""
    names = checkpoint_files.file_names(checkpoint)
    checkpoint_files.write_manifest(checkpoint, checkpoint_files.checksums(checkpoint, names))
