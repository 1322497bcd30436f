"""A run that is interrupted, at any moment and in any way, and resumed is bit-equal to the uninterrupted run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.training.step import Stepper
from tests.end_to_end.processes import started, steps_logged, wait_for
from tests.end_to_end.runs import metrics, run_status, tiny_flags
from tests.support_errors import assert_names
from tests.support_processes import PATIENCE_SECONDS


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(data: str, tmp_path: Path) -> None:
    """The whole process group receives the signal, including data workers; for SIGTERM ``test_saves`` has this."""
    flags = ["--train-iters", 100_000, "--eval-iters", 0, "--save", tmp_path, "--save-interval", 3, "--num-workers", 2]
    with started(tiny_flags(data, *flags)) as process:
        wait_for(process, lambda: checkpoint_files.read_tracker(tmp_path) is not None)
        os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=PATIENCE_SECONDS)[1]
    assert (process.returncode, stderr) == (130, "pretrain_gpt_ltd.py: interrupted\n")
    latest = checkpoint_files.read_tracker(tmp_path)
    assert latest == steps_logged(tmp_path)
    assert checkpoint_files.find_damage(checkpoint_files.checkpoint_path(tmp_path, latest)) is None


def _signal_inside(monkeypatch: pytest.MonkeyPatch, method: str, call: int, number: int, times: int = 1) -> None:
    """Send ``number`` to this process during the ``call``-th call of the stepper's ``method``."""
    original, calls = getattr(Stepper, method), iter(range(1, 1000))

    def with_signal(*arguments: Any) -> Any:
        if next(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(Stepper, method, with_signal)


SIGNALS = {
    "SIGTERM in a step": ("train", 4, signal.SIGTERM, 0, 4, "SIGTERM arrived"),
    "SIGTERM in an evaluation": ("evaluate", 1, signal.SIGTERM, 0, 3, "SIGTERM arrived"),
    "Ctrl-C in a step": ("train", 2, signal.SIGINT, 130, 2, "Ctrl-C was pressed"),
}


@pytest.mark.parametrize(("method", "call", "number", "status", "saved", "why"), SIGNALS.values(), ids=SIGNALS.keys())
def test_a_signal_saves_and_ends_the_run(
    method: str, call: int, number: int, status: int, saved: int, why: str,
    data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        _signal_inside(patch, method, call, number)
        assert run_status(tiny_flags(data, "--save", tmp_path))[0] == status
    assert f"left after step {saved}: {why}" in capsys.readouterr().out
    assert checkpoint_files.saved_iterations(tmp_path) == [saved]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert run_status(tiny_flags(data, "--save", tmp_path, "--load", tmp_path)) == (0, "")
    assert metrics(tmp_path) == metrics(straight)


def test_a_second_ctrl_c_stops_at_once(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _signal_inside(monkeypatch, "train", 2, signal.SIGINT, times=2)
    assert run_status(tiny_flags(data, "--save", tmp_path)) == (130, "pretrain_gpt_ltd.py: interrupted\n")
    assert checkpoint_files.saved_iterations(tmp_path) == []


@pytest.mark.parametrize(
    ("flag", "saved", "why"),
    [
        (["--exit-interval", 4], 4, "--exit-interval 4 is reached"),
        (["--exit-duration-in-mins", 0], 1, "--exit-duration-in-mins is over"),
    ],
)
def test_exit_flags(
    flag: list[object], saved: int, why: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_status(tiny_flags(data, "--save", tmp_path, *flag)) == (0, "")
    assert f"left after step {saved}: {why}" in capsys.readouterr().out
    assert checkpoint_files.saved_iterations(tmp_path) == [saved]


def test_a_full_disk_while_logging(data: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    status, said = run_status(tiny_flags(data, "--log-dir", tmp_path))
    assert status == 1
    assert_names(said.rstrip(), tmp_path / "metrics.jsonl", "No space left on device")


def _scale_loss(monkeypatch: pytest.MonkeyPatch, step: int, factor: float) -> None:
    """Multiply the loss of ``step`` by ``factor``; steps are 1-based and have 2 microbatches, and there is no
    evaluation.
    """
    from megatron.ltd.training import objective as module

    original, calls = module.masked_loss_sum, iter(range(10_000))

    def scaled(*arguments: Any) -> Any:
        loss_sum, num_tokens, reported = original(*arguments)
        if next(calls) // 2 + 1 == step:
            loss_sum, reported = loss_sum * factor, reported * reported.new_tensor([factor, 1.0])
        return loss_sum, num_tokens, reported

    monkeypatch.setattr(module, "masked_loss_sum", scaled)


def test_nan_stops_the_run(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scale_loss(monkeypatch, 5, float("nan"))
    status, said = run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2, "--eval-iters", 0))
    assert status == 1
    assert_names(said.rstrip(), "step 5", "nan", "a lower --lr and --override-opt-param-scheduler")
    assert checkpoint_files.saved_iterations(tmp_path) == [2, 4]
    assert steps_logged(tmp_path) == 4


def test_nan_is_skipped_on_request(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step does not change the weights, and the clock of the learning rate does not advance."""
    _scale_loss(monkeypatch, 5, float("nan"))
    flags = tiny_flags(data, "--save", tmp_path, "--eval-iters", 0, "--no-check-for-nan-in-loss-and-grad")
    assert run_status(flags) == (0, "")
    lines = metrics(tmp_path)
    assert lines["train", 5]["loss"] is None
    assert lines["train", 6]["lr"] == lines["train", 5]["lr"] and 5.0 < lines["train", 6]["loss"] < 6.5


def test_updates_that_are_always_skipped_stop_the_run(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A constant loss scale with which every gradient overflows in float16."""
    skipping = ["--fp16", "--loss-scale", 2.0**100, "--max-skipped-updates", 3, "--log-interval", 3, "--eval-iters", 0]
    status, said = run_status(tiny_flags(data, "--save", tmp_path, *skipping))
    assert status == 1
    assert_names(said.rstrip(), "3 updates", "step 3", "1.26765e+30", "--max-skipped-updates", "--bf16")
    assert_names(said.rstrip(), "a lower --lr and --override-opt-param-scheduler")
    lines = metrics(tmp_path)
    assert [(line["skipped_updates"], line["loss_scale"]) for line in lines.values()] == [(1, 2.0**100)] * 3
    assert "| 3 skipped, loss scale 1.26765e+30 |" in capsys.readouterr().out
    assert checkpoint_files.saved_iterations(tmp_path) == []


def test_updates_that_are_skipped_now_and_then_do_not(data: str, tmp_path: Path) -> None:
    """The dynamic scale halves until gradients are finite: fewer updates are skipped than would stop the run."""
    scale = ["--fp16", "--initial-loss-scale", 2.0**20, "--hysteresis", 1, "--train-iters", 30, "--eval-iters", 0]
    assert run_status(tiny_flags(data, "--log-dir", tmp_path, *scale)) == (0, "")
    lines = [line for (kind, _), line in metrics(tmp_path).items() if kind == "train"]
    skipped = [line["skipped_updates"] for line in lines]
    assert 0 < sum(skipped) < 20 and skipped == sorted(skipped, reverse=True)
    scales = [line["loss_scale"] for line in lines]
    assert scales == [2.0 ** (20 - min(step, sum(skipped))) for step in range(30)]


def test_a_spike_stops_the_run(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scale_loss(monkeypatch, 25, 10.0)
    flags = ["--train-iters", 26, "--eval-iters", 0, "--check-for-spiky-loss", "--save", tmp_path]
    status, said = run_status(tiny_flags(data, *flags))
    assert status == 1
    assert_names(said.rstrip(), "step 25", "--spiky-loss-factor 3.0")
    assert checkpoint_files.saved_iterations(tmp_path) == []


def test_load_and_save_may_differ(data: str, straight: Path, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "iter_0000002").symlink_to(straight / "iter_0000002")
    assert run_status(tiny_flags(data, "--load", tmp_path / "from", "--save", tmp_path / "to")) == (0, "")
    left, whole = metrics(tmp_path / "to"), metrics(straight)
    assert left == {key: whole[key] for key in whole if key[1] > 2}
