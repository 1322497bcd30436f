"""The digits benchmark: its figures, and one small complete measurement."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.warm.start import warm_python
from tools.benchmark.digits import METHODS, Result, table


def test_means_and_savings_are_over_seeds() -> None:
    results = [
        Result(method, seed, 10, accuracy, 0.9, flops, 1000, 10.0, 20.0)
        for method, flops, accuracies in (("dense", 4000, (0.96, 1.0)), ("random-LTD", 3000, (0.98, 0.97)))
        for seed, accuracy in enumerate(accuracies)
    ]
    *_, dense, dropping = table(results).splitlines()
    assert "| 98.00% |" in dense and "saves" not in dense
    assert "| 97.50% |" in dropping and "(saves 25.0%)" in dropping and "(saves 0.0%)" in dropping


@pytest.mark.slow
def test_a_small_measurement(repository: Path, tmp_path: Path) -> None:
    flags = ["--seeds", "3", "--train-iters", "2", "--json", str(tmp_path / "digits.json")]
    command = [warm_python(), str(repository / "tools" / "benchmark" / "digits.py"), *flags]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    runs = json.loads((tmp_path / "digits.json").read_text())["runs"]
    assert [(run["method"], run["seed"], run["steps"]) for run in runs] == [(method, 3, 2) for method in METHODS]
    assert runs[0]["train_flops"] > runs[1]["train_flops"] and ended.stdout.count("\n| ") == 1 + 1 + 2 + 2


def test_the_committed_figures_agree_with_the_readme(repository: Path) -> None:
    """All reach an accuracy of 97 %, as the README of the folder says."""
    runs = json.loads((repository / "tools" / "benchmark" / "results" / "digits.json").read_text())["runs"]
    assert {(run["method"], run["seed"]) for run in runs} == {(method, seed) for method in METHODS for seed in (1, 2)}
    assert all(run["accuracy"] >= 0.97 for run in runs)
