#!/usr/bin/env python3
"""Measure test accuracy and seconds of a vision transformer on scikit-learn's digits, dense and with random-LTD.

    python tools/benchmark/digits.py --json tools/benchmark/results/digits.json > tools/benchmark/results/digits.md

Each run is ``finetune_vit_ltd.py`` in its own process with the script's settings for digits: equal steps, 1,437 images
for training and 360 for testing. Runs of both methods alternate, so that a temporary slowdown of the machine affects
both. The results are those of the last evaluation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from common.corpus import REPOSITORY
from common.page import about, facts, run_python, write_json

from finetune_vit_ltd import DIGITS, DIGITS_RANDOM_LTD
from megatron.ltd.errors import UserError, run_command
from megatron.ltd.flags import Settings, flag, read_command
from megatron.ltd.flags.ranges import SEED
from megatron.ltd.format import markdown_table
from megatron.ltd.reports.metrics import read_history
from megatron.ltd.reports.summary import summarize

METHODS = {"dense": (), "random-LTD": (DIGITS_RANDOM_LTD,)}


@dataclass(frozen=True)
class DigitsConfig(Settings):
    """digits"""

    seeds: tuple[int, ...] = flag((1, 2), range=SEED, help="seeds, each a run of every method")
    train_iters: int | None = flag(None, help="steps of every run (default: those of finetune_vit_ltd.py)")
    json: str | None = flag(None, metavar="FILE", help="also write everything here")


@dataclass(frozen=True)
class Result:
    """The result of one run."""

    method: str
    seed: int
    steps: int
    accuracy: float
    """Accuracy on the test images after training."""
    f1: float
    train_flops: int
    layer_tokens: int
    step_seconds: float
    """Wall time of all training steps; each counts as the median of the steps with the same FLOPs."""
    process_seconds: float
    """CPU time of the whole process: start, training and evaluation."""


def measure(method: str, seed: int, config: DigitsConfig) -> Result:
    """Train one model and read its log. Raises ``UserError`` if the run fails."""
    flags = ["--config", DIGITS, *METHODS[method], "--seed", str(seed)]
    if config.train_iters is not None:
        flags += ["--train-iters", str(config.train_iters)]
    with tempfile.TemporaryDirectory() as folder:
        ended, took = run_python([str(REPOSITORY / "finetune_vit_ltd.py"), *flags, "--log-dir", folder])
        if ended.returncode:
            raise UserError(f"the {method} run of seed {seed} failed: {ended.stderr.strip().splitlines()[-1]}")
        history = read_history(Path(folder), method)
    last = history.validations[-1]
    return Result(
        method, seed, len(history.steps), last["accuracy"], last["f1"], history.flops[-1],
        history.steps[-1]["consumed_layer_tokens"], summarize(history).fast_seconds, took.cpu,
    )  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """A table with one row per run, and one per method with means over seeds and savings over dense."""
    rows = [
        (
            result.method,
            f"{result.seed}",
            f"{result.accuracy:.2%}",
            f"{result.f1:.4f}",
            *(layout.format(getattr(result, name) / unit) for name, (layout, unit) in _COSTS.items()),
        )
        for result in results
    ]
    dense = [result for result in results if result.method == "dense"]
    for method in METHODS:
        runs = [result for result in results if result.method == method]
        costs = []
        for name, (layout, unit) in _COSTS.items():
            cost, dense_cost = (mean(getattr(result, name) for result in group) for group in (runs, dense))
            saving = "" if method == "dense" else f" (saves {1 - cost / dense_cost:.1%})"
            costs.append(layout.format(cost / unit) + saving)
        rows.append((f"**{method}**, mean", "", f"{mean(run.accuracy for run in runs):.2%}", "", *costs))
    header = ("", "seed", "test accuracy", "F1", "FLOPs", "layer tokens", "seconds of the steps")
    return markdown_table(rows, (*header, "CPU seconds of the process"))


_COSTS = {
    "train_flops": ("{:.0f} G", 1e9),
    "layer_tokens": ("{:.2f} M", 1e6),
    "step_seconds": ("{:.1f}", 1.0),
    "process_seconds": ("{:.1f}", 1.0),
}
"""Costs of a run: field -> format and unit"""


def main() -> None:
    """Read the flags, run, print the page, and write the JSON file."""
    (config,) = read_command(__doc__, DigitsConfig)
    results = [measure(method, seed, config) for seed in config.seeds for method in METHODS]
    named = about(
        "digits.py", "torch", "megatron-core", "scikit-learn",
        threads=os.environ.get("OMP_NUM_THREADS", "torch's default"),
        flags="`--config examples/vit/digits.yaml`; random-LTD: `examples/vit/digits_random_ltd.yaml`; "
        f"{results[0].steps} steps",
    )  # fmt: skip
    print("# Digits: dense and random-LTD at equal steps\n")
    print(f"{facts(named)}\n\n{table(results)}")
    if config.json is not None:
        write_json(Path(config.json), {"about": named, "runs": [asdict(result) for result in results]})


if __name__ == "__main__":
    run_command(main)
