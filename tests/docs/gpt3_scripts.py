"""What the tests of the GPT-3 examples share: their scripts as a user runs them, their recipe and their cards."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy

from tests.support_processes import PATIENCE_SECONDS

SHARED = ("gpt3/settings.sh", "gpt3/pretrain.sh", "gpt3/prepare_data.sh", "gpt3/evaluate.sh")
SIZES = ("gpt3_1.3b", "gpt3_350m")
VARIANTS = ("300B", "200B", "150B")


def run(repository: Path, cwd: Path, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A script in a plain user's environment, with few threads, and this environment in place of one set up."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG")}
    return subprocess.run(
        ["bash", str(repository / "examples" / script), *arguments],
        env={**kept, "OMP_NUM_THREADS": "1", "VENV": sys.prefix, **settings},
        cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip


def training_command(repository: Path, cwd: Path, script: str, *arguments: str, **settings: str) -> list[str]:
    """The words after pretrain_gpt_ltd.py in the command that DRY_RUN=1 shows."""
    shown = run(repository, cwd, script, *arguments, DRY_RUN="1", **settings).stdout
    (command,) = (line for line in shown.splitlines() if "torch.distributed.run" in line)
    words = shlex.split(command)
    return words[words.index(str(repository / "pretrain_gpt_ltd.py")) + 1 :]


RECIPE = {
    ("gpt3_1.3b", "300B"): (2e-4, 200_000),
    ("gpt3_1.3b", "200B"): (3e-4, 133_333),
    ("gpt3_1.3b", "150B"): (4e-4, 100_000),
    ("gpt3_350m", "300B"): (3e-4, 400_000),
    ("gpt3_350m", "200B"): (4.5e-4, 266_666),
    ("gpt3_350m", "150B"): (6e-4, 200_000),
}
"""Peak learning rate, and growth in steps."""


def steps_until(tokens: int, batch: int, growth_steps: int | None) -> int:
    """Steps until the layer tokens / layers reach ``tokens``: the definition, summed step by step."""
    kept = numpy.full(10**6, 2048)
    if growth_steps is not None:
        growing = numpy.arange(growth_steps)
        kept[:growth_steps] = (128 + 1920 * growing // growth_steps) // 16 * 16
    layer_tokens = numpy.cumsum((22 * kept + 2 * 2048) * batch)
    return int(numpy.searchsorted(layer_tokens, 24 * tokens)) + 1


def readme(repository: Path, size: str) -> str:
    return (repository / "examples" / size / "README.md").read_text(encoding="utf-8")
