"""Bad input to ``--plan``: one line with the flag or file, value, rule and fix, exit status 2, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.end_to_end.runs import refusal, run_status, snapshot, tiny_flags
from tests.support_errors import assert_names

SPEED = ["--plan-peak-tflops", 1, "--plan-mfu", 0.5]
FLAGS: dict[str, tuple[list[object], list[object]]] = {
    "no plan": (["--plan-mfu", 0.4], ["--plan-mfu 0.4", "--plan"]),
    "gpu": (["--plan", "--plan-gpu", "abacus"], ["--plan-gpu", "abacus"]),
    "peak of another type": (
        ["--plan", "--plan-gpu", "a100", "--plan-mfu", 0.4],
        ["--plan-gpu", "--plan-peak-tflops"],
    ),
    "a growth that is given": (
        ["--plan", "--plan-target-saving", 0.3],
        ["--plan-target-saving 0.3", "--ltd-growth-steps 5"],
    ),
    "a length that is given": (
        ["--plan", *SPEED, "--plan-gpu-hours", 9],
        ["--plan-gpu-hours 9", "--train-iters 6"],
    ),
    "gpus": (
        ["--plan", "--plan-gpus", 3, "--tensor-model-parallel-size", 2],
        ["--plan-gpus 3", "--tensor-model-parallel-size 2", 2],
    ),
    "batch": (
        ["--plan", "--plan-gpus", 4],
        ["--global-batch-size 4", "--micro-batch-size 2", 4],
    ),
    "interleaving": (
        [
            "--plan", "--num-layers", 4, "--pipeline-model-parallel-size", 2,
            "--num-layers-per-virtual-pipeline-stage", 1, "--global-batch-size", 2,
        ],
        [2, "--pipeline-model-parallel-size 2"],
    ),
    "graphs of a number of tokens that changes at every step": (
        ["--plan", "--device", "auto", "--cuda-graph-impl", "local"],
        ["--cuda-graph-impl local", 40],
    ),
    "file that is there": (["--plan", "--plan-json", "mine"], ["--plan-json"]),
    "no folder": (["--plan", "--plan-json", "no/plan.json"], ["--plan-json no/plan"]),
    "below a file": (["--plan", "--plan-json", "mine/plan.json"], ["--plan-json mine/plan"]),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "names"), FLAGS.values(), ids=FLAGS.keys())
def test_flags(flags: list[object], names: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("mine")
    line = refusal(tiny_flags("nowhere", *flags))
    assert_names(line, *names)
    assert snapshot(tmp_path) == {"mine": b"mine"}


def without(name: str, *more: object) -> list[str]:
    """The flags of the tiny run without the flag ``name`` and its value."""
    flags = tiny_flags("nowhere", *more)
    place = flags.index(name)
    return flags[:place] + flags[place + 2 :]


@pytest.mark.parametrize("wish", [0.3, 0.9])
def test_a_saving_out_of_reach(wish: float) -> None:
    """One of three layers drops tokens, and the last of 6 steps keeps all: at most 5 steps keep 4, 8 or 12 of 16
    tokens.
    """
    line = refusal(without("--ltd-growth-steps", "--plan", "--plan-target-saving", wish))
    most = sum(16 - kept for kept in (4, 4, 8, 8, 12)) / (6 * 3 * 16)
    assert f"--plan-target-saving {wish}" in line and f"0.0417 to {most:.4f}" in line, line


@pytest.mark.parametrize("schedule", ["shrinking", "constant"])
def test_a_schedule_without_growth(schedule: str) -> None:
    line = refusal(without("--ltd-growth-steps", "--plan", "--plan-target-saving", 0.1, "--ltd-schedule", schedule))
    assert "--plan-target-saving 0.1" in line and "the schedule of --random-ltd does not grow" in line


def test_a_saving_without_a_method() -> None:
    flags = [flag for flag in tiny_flags("nowhere", "--plan", "--plan-target-saving", 0.3) if flag != "--random-ltd"]
    line = refusal(flags)
    assert "no method with a growth is on; add --random-ltd or --token-bypass" in line


def test_too_few_gpu_hours_for_one_step() -> None:
    line = refusal(without("--train-iters", "--plan", *SPEED, "--plan-gpu-hours", 1e-12))
    assert "--plan-gpu-hours 1e-12" in line and "less than the first step" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written to" in refusal(tiny_flags("nowhere", "--plan", "--plan-json", tmp_path / "closed" / "p"))


def test_a_plan_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_status(tiny_flags("nowhere", "--plan", "--save", "out")) == (0, "")
    assert snapshot(tmp_path) == {}
