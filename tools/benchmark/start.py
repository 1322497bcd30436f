#!/usr/bin/env python3
"""What a start costs: a plan, a refusal, and the first step of the quickstart's model, in seconds.

    python tools/benchmark/start.py --rounds 3 > tools/benchmark/results/start.md

Each is ``pretrain_gpt_ltd.py`` in a process of its own, one after another in every round. CPU seconds are those of the
process and of its children; wall seconds depend on what else the machine does, and the fastest round counts for both.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common.estimate import markdown_table
from common.page import about, check_at_least, facts
from memory import small_data

from megatron.ltd.errors import RunStopped, run_command
from megatron.ltd.flags import flag, read_command

_REPOSITORY = Path(__file__).resolve().parents[2]
_MOST_SECONDS = 300


@dataclass(frozen=True)
class Config:
    """benchmark"""

    rounds: int = flag(5, help="times that each is started; the fastest counts")

    def __post_init__(self) -> None:
        check_at_least(self, rounds=1)


def starts(data: str, folder: Path) -> dict[str, tuple[list[str], int]]:
    """Flags and exit status of each kind of start, by its name."""
    recipe = str(_REPOSITORY / "examples" / "quickstart" / "recipe.yaml")
    model = ["--config", recipe, "--random-ltd", "--global-batch-size", "4", "--tokenizer-type", "ByteTokenizer"]
    trained = ["--device", "cpu", "--data-path", data, "--split", "1,0,0", "--eval-iters", "0"]
    return {
        "`--plan`": ([*model, "--plan"], 0),
        "a refusal (`--lr -1`)": ([*model, "--lr", "-1"], 2),
        "the first step": ([*model, *trained, "--exit-interval", "1", "--log-dir", str(folder)], 0),
    }


def measured(flags: list[str], status: int) -> tuple[float, float]:
    """CPU and wall seconds of one start, which must end with ``status``."""
    command = [sys.executable, str(_REPOSITORY / "pretrain_gpt_ltd.py"), *flags]
    cpu, wall = _children_seconds(), time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
    if ended.returncode != status:
        raise RunStopped(f"a start ended with status {ended.returncode}: {ended.stderr.strip()}")
    return _children_seconds() - cpu, time.perf_counter() - wall


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print the page."""
    (config,) = read_command(__doc__, Config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = starts(small_data(folder), folder / "log")
        rounds = [{kind: measured(*what) for kind, what in kinds.items()} for _ in range(config.rounds)]
    rows = [[kind, *(f"{min(one[kind][unit] for one in rounds):.2f}" for unit in (0, 1))] for kind in kinds]
    print("# Start: a plan, a refusal, a first step\n")
    print(f"The quickstart's model with a tokenizer of bytes, the fastest of {config.rounds} starts each.\n")
    print("\n".join([*markdown_table(["", "CPU s", "wall s"], rows), "", *facts(about("start.py", "torch"))]))


if __name__ == "__main__":
    run_command(main)
