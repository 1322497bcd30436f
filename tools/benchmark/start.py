#!/usr/bin/env python3
"""What a start costs: a plan, a refusal, and the first step of the quickstart's model, also over thousands of datasets.

    python tools/benchmark/start.py --rounds 5 --datasets 0 > tools/benchmark/results/start.md
    python tools/benchmark/start.py --rounds 0 >> tools/benchmark/results/start.md

Each is ``pretrain_gpt_ltd.py`` in a process of its own, one after another in every round. CPU seconds are those of the
process and of its children; wall seconds depend on what else the machine does, and the fastest round counts for both.
Then a run over each blend of ``--datasets`` is started twice, the second time with the sample indices of the first:
seconds, and how often a file of the data or of the indices is opened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from common.corpus import REPOSITORY
from common.page import about, facts, run_python
from memory import small_data

from megatron.ltd.data.indexed import INDEX_HEADER, INDEX_MAGIC
from megatron.ltd.errors import RunStopped, run_command
from megatron.ltd.flags import Settings, flag, read_command
from megatron.ltd.flags.ranges import COUNT_OR_ZERO
from megatron.ltd.format import markdown_table

_MODEL = ["--config", str(REPOSITORY / "examples" / "quickstart" / "recipe.yaml"), "--random-ltd"]
_MODEL += ["--global-batch-size", "4", "--tokenizer-type", "ByteTokenizer"]
_MOST_SECONDS = 3600


@dataclass(frozen=True)
class Config(Settings):
    """benchmark"""

    rounds: int = flag(5, range=COUNT_OR_ZERO, help="times that each is started; the fastest counts, 0: none")
    datasets: tuple[int, ...] = flag(
        (1, 24, 240, 2400), range=COUNT_OR_ZERO, help="small datasets in each blend, 0: none"
    )


def starts(data: str, folder: Path) -> dict[str, tuple[list[str], int]]:
    """Flags and exit status of each kind of start, by its name."""
    trained = ["--device", "cpu", "--data-path", data, "--split", "1,0,0", "--eval-iters", "0"]
    return {
        "`--plan`": ([*_MODEL, "--plan"], 0),
        "a refusal (`--lr -1`)": ([*_MODEL, "--lr", "-1"], 2),
        "the first step": ([*_MODEL, *trained, "--exit-interval", "1", "--log-dir", str(folder)], 0),
    }


def blend_flags(folder: Path, number: int) -> list[str]:
    """Write ``number`` datasets of 20 documents, and a file that names them; return the flags of a run over them."""
    words = []
    for place in range(number):
        prefix, draw = folder / f"{place:05d}", numpy.random.RandomState(place)
        lengths = draw.randint(20, 200, size=20).astype("<i4")
        draw.randint(0, 256, int(lengths.sum())).astype("<u2").tofile(f"{prefix}.bin")
        starts = (numpy.cumsum(lengths, dtype="<i8") - lengths) * 2
        with open(f"{prefix}.idx", "wb") as file:
            file.write(INDEX_HEADER.pack(INDEX_MAGIC, 1, 8, 20, 21))
            for part in (lengths, starts, numpy.arange(21, dtype="<i8")):
                file.write(part.tobytes())
        words.append(f"1 {prefix}")
    (folder / "blend.txt").write_text("\n".join(words), encoding="utf-8")
    data = [
        "--data-args-path",
        str(folder / "blend.txt"),
        "--split",
        "90,10",
        "--data-cache-path",
        str(folder / "cache"),
    ]
    return [*data, "--seq-length", "64", "--num-layers", "3", "--eval-iters", "1", "--device", "cpu"]


def blend_row(folder: Path, number: int) -> list[str]:
    """CPU seconds, wall seconds and opened files of two starts over a blend."""
    row = [f"{number:,}"]
    flags = [*_MODEL, *blend_flags(folder, number), "--exit-interval", "1", "--log-dir", str(folder / "log")]
    for _ in range(2):
        cpu, wall = measured(flags, 0, counted=folder)
        row += [f"{cpu:.2f}", f"{wall:.2f}", (folder / "opened").read_text()]
    return row


_COUNTED = """
import runpy, sys
folder, opened = sys.argv[1], 0
def count(event, arguments):
    global opened
    opened += event == "open" and str(arguments[0]).startswith(folder)
sys.addaudithook(count)
sys.argv = sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    opened, found = 0, opened
    open(folder + "/opened", "w").write(f"{found:,}")
"""
"""Runs a script, and writes how often files of a folder were opened."""


def measured(flags: list[str], status: int, counted: Path | None = None) -> tuple[float, float]:
    """CPU and wall seconds of one start, which must end with ``status``; ``counted`` as in ``_COUNTED``."""
    before = [] if counted is None else ["-c", _COUNTED, str(counted)]
    ended, took = run_python([*before, str(REPOSITORY / "pretrain_gpt_ltd.py"), *flags], timeout=_MOST_SECONDS)
    if ended.returncode != status:
        raise RunStopped(f"a start ended with status {ended.returncode}: {ended.stderr.strip()}")
    return took.cpu, took.wall


def print_starts(config: Config) -> None:
    """Measure a plan, a refusal and a first step, and print the page's first part."""
    with tempfile.TemporaryDirectory() as name:
        kinds = starts(small_data(Path(name)), Path(name) / "log")
        rounds = [{kind: measured(*what) for kind, what in kinds.items()} for _ in range(config.rounds)]
    rows = [[kind, *(f"{min(one[kind][unit] for one in rounds):.2f}" for unit in (0, 1))] for kind in kinds]
    print("# Start: a plan, a refusal, a first step\n")
    print(f"The quickstart's model with a tokenizer of bytes, the fastest of {config.rounds} starts each.\n")
    print(f"{markdown_table(rows, ['', 'CPU s', 'wall s'])}\n\n{facts(about('start.py', 'torch'))}")


def print_blends(numbers: Sequence[int]) -> None:
    """Measure starts over blends, and print the page's second part."""
    rows = []
    for number in numbers:
        with tempfile.TemporaryDirectory() as name:
            rows.append(blend_row(Path(name), number))
    print("\n## Over many datasets\n")
    print(
        "A run to its first step over a blend of small datasets (20 documents of 20 to 200 tokens; training and "
        "validation samples),\nwith an empty cache of sample indices, and again with the indices of the first start.\n"
    )
    head = [f"{start}: {what}" for start in ("first", "second") for what in ("CPU s", "wall s", "files opened")]
    print(f"{markdown_table(rows, ['datasets', *head])}\n\n{facts(about('start.py', 'torch', 'megatron-core'))}")


def main() -> None:
    """Measure, and print the page."""
    (config,) = read_command(__doc__, Config)
    if config.rounds:
        print_starts(config)
    if any(config.datasets):
        print_blends(config.datasets)


if __name__ == "__main__":
    run_command(main)
