#!/usr/bin/env python3
"""Test accuracy and seconds of a vision transformer on scikit-learn's digits: dense and with random-LTD, side by side.

    python tools/benchmark/digits.py --json tools/benchmark/results/digits.json > tools/benchmark/results/digits.md

Each run is ``finetune_vit_ltd.py`` in a process of its own, with the flags that the script itself has for digits: equal
steps, 1,437 images to train on and 360 to test on, which no run has seen. Runs take turns, so that what slows the
machine for a while slows both. The last evaluation counts; no step is chosen by it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from finetune_vit_ltd import DIGITS, DIGITS_RANDOM_LTD  # noqa: E402
from megatron.ltd.errors import UserError, run_command  # noqa: E402
from megatron.ltd.flags import add_flags, flag, read_flags  # noqa: E402
from megatron.ltd.reports.metrics import read_history  # noqa: E402
from megatron.ltd.reports.summary import summarize  # noqa: E402
from megatron.ltd.versions import cpu_model  # noqa: E402

METHODS = {"dense": (), "random-LTD": (DIGITS_RANDOM_LTD,)}


@dataclass(frozen=True)
class DigitsConfig:
    """digits"""

    seeds: tuple[int, ...] = flag((1, 2), help="seeds, each a run of every method")
    train_iters: int | None = flag(None, help="steps of every run (default: those of finetune_vit_ltd.py)")
    json: str | None = flag(None, metavar="FILE", help="also write everything here")

    def __post_init__(self) -> None:
        if self.train_iters is not None and self.train_iters < 1:
            raise UserError(f"--train-iters is {self.train_iters}: it must be at least 1")


@dataclass(frozen=True)
class Result:
    """One run."""

    method: str
    seed: int
    steps: int
    accuracy: float
    """Of the test images, at the end."""
    f1: float
    train_flops: int
    layer_tokens: int
    step_seconds: float
    """All training steps, wall; each counts as the median of the steps that compute as much."""
    process_seconds: float
    """Of the processor, for the whole process: start, training, evaluation."""


def measure(method: str, seed: int, config: DigitsConfig) -> Result:
    """Train one model, and read what its log says. Raises ``UserError`` where the run fails."""
    flags = ["--config", DIGITS, *METHODS[method], "--seed", str(seed)]
    if config.train_iters is not None:
        flags += ["--train-iters", str(config.train_iters)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "finetune_vit_ltd.py"), *flags, "--log-dir", folder]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if ended.returncode:
            raise UserError(f"the {method} run of seed {seed} failed: {ended.stderr.strip().splitlines()[-1]}")
        history = read_history(Path(folder), method)
    last = history.validations[-1]
    return Result(
        method, seed, len(history.steps), last["accuracy"], last["f1"], history.flops[-1],
        history.steps[-1]["consumed_layer_tokens"], summarize(history).usual_seconds,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )  # fmt: skip


def table(results: list[Result]) -> list[str]:
    """A row a run, and of each method the means over seeds beside the dense run's."""
    lines = [
        "| | seed | test accuracy | F1 | FLOPs | layer tokens | seconds of the steps | CPU seconds of the process |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        lines.append(
            f"| {result.method} | {result.seed} | {result.accuracy:.2%} | {result.f1:.4f} | "
            f"{result.train_flops / 1e9:.0f} G | {result.layer_tokens / 1e6:.2f} M | {result.step_seconds:.1f} | "
            f"{result.process_seconds:.1f} |"
        )
    means = {
        method: [mean(getattr(result, name) for result in results if result.method == method) for name in _MEANS]
        for method in METHODS
    }
    for method, values in means.items():
        accuracy, flops, tokens, steps, process = values
        saved = [f"{1 - value / of:+.1%}" for value, of in zip(values[1:], means["dense"][1:], strict=True)]
        shown = ["", "", "", ""] if method == "dense" else [f" (saves {amount.lstrip('+')})" for amount in saved]
        lines.append(
            f"| **{method}**, mean | | {accuracy:.2%} | | {flops / 1e9:.0f} G{shown[0]} | "
            f"{tokens / 1e6:.2f} M{shown[1]} | {steps:.1f}{shown[2]} | {process:.1f}{shown[3]} |"
        )
    return lines


_MEANS = ("accuracy", "train_flops", "layer_tokens", "step_seconds", "process_seconds")


def circumstances(results: list[Result]) -> dict[str, str]:
    threads = os.environ.get("OMP_NUM_THREADS", "as many as torch takes by itself")
    packages = ("torch", "megatron-core", "scikit-learn")
    setting = f"OMP_NUM_THREADS={threads} " if "OMP_NUM_THREADS" in os.environ else ""
    return {
        "command": f"{setting}python {shlex.join(['tools/benchmark/digits.py', *sys.argv[1:]])}",
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, threads: {threads}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "date": datetime.date.today().isoformat(),
        "load average": f"{os.getloadavg()[0]:.1f} over the last minute, this benchmark included",
        "flags": "--config examples/vit/digits.yaml; random-LTD: examples/vit/digits_random_ltd.yaml; "
        f"{results[0].steps} steps",
    }


def main() -> None:
    """Read the flags, run, print the page and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, DigitsConfig)
    config = read_flags(parser.parse_args(), DigitsConfig)
    results = [measure(method, seed, config) for seed in config.seeds for method in METHODS]
    about: dict[str, Any] = circumstances(results)
    print("# Digits: dense and random-LTD at equal steps\n")
    print(
        "\n".join(
            f"- {name}: {f'`{value}`' if name in ('command', 'flags') else value}" for name, value in about.items()
        )
    )
    print("\n" + "\n".join(table(results)))
    if config.json is not None:
        everything = {"about": about, "runs": [asdict(result) for result in results]}
        Path(config.json).write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
