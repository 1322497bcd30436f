"""Helpers for tests of the examples: running their scripts like a user, and the numbers of the GPT-3 recipes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy

from tests.support_processes import PATIENCE_SECONDS
from tests.warm.start import warm_environment

SIZES = ("1.3b", "350m")
LENGTHS = ("300B", "200B", "150B")
NEW_PYTHON = {"VIRTUAL_ENV": sys.prefix}
"""The setting with which each script is started in a new Python, which imports what the script needs."""


def environment(**settings: str) -> dict[str, str]:
    """A user's plain environment with a virtual environment active, the warm one or that of ``settings``, and one
    thread.
    """
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG")}
    return {**kept, "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": warm_environment(), **settings}


def run(repository: Path, cwd: Path, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the examples from ``cwd``, like a user; it writes to ``runs`` there."""
    return subprocess.run(
        ["bash", str(repository / "examples" / script), *arguments],
        env=environment(**settings), cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def training_command(repository: Path, cwd: Path, *arguments: str, **settings: str) -> list[str]:
    """The flags of pretrain_gpt_ltd.py in the command that gpt3/pretrain.sh prints with DRY_RUN=1."""
    shown = run(repository, cwd, "gpt3/pretrain.sh", *arguments, DRY_RUN="1", **settings).stdout
    (command,) = (line for line in shown.splitlines() if "torchrun.py" in line)
    words = shlex.split(command)
    return words[words.index(str(repository / "pretrain_gpt_ltd.py")) + 1 :]


RECIPE = {
    ("1.3b", "300B"): (2e-4, 200_000),
    ("1.3b", "200B"): (3e-4, 133_333),
    ("1.3b", "150B"): (4e-4, 100_000),
    ("350m", "300B"): (3e-4, 400_000),
    ("350m", "200B"): (4.5e-4, 266_666),
    ("350m", "150B"): (6e-4, 200_000),
}
"""(size, length) -> peak learning rate, and growth in steps"""


def steps_until(tokens: int, batch: int, growth_steps: int | None) -> int:
    """The number of steps until layer tokens / layers reach ``tokens``, summed step by step as in the definition."""
    kept = numpy.full(10**6, 2048)
    if growth_steps is not None:
        growing = numpy.arange(growth_steps)
        kept[:growth_steps] = (128 + 1920 * growing // growth_steps) // 16 * 16
    layer_tokens = numpy.cumsum((22 * kept + 2 * 2048) * batch)
    return int(numpy.searchsorted(layer_tokens, 24 * tokens)) + 1


def readme(repository: Path, size: str) -> str:
    return (repository / "examples" / f"gpt3_{size}" / "README.md").read_text(encoding="utf-8")
