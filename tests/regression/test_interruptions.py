"""A run that is interrupted, at any moment and in any way, ends as the uninterrupted one did: bit for bit."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.training import checkpoint_files
from megatron.ltd.training.step import Stepper
from tests.regression.runs import metrics, run_status, snapshot, tiny_flags


class Killed(BaseException):
    """Stands for a kill: nothing in the product may catch it."""


def _resume(data: str, folder: Path, *more: object) -> tuple[int, str]:
    return run_status(tiny_flags(data, "--save", folder, "--load", folder, "--save-interval", 2, *more))


KILLS = {
    "before anything is written": "start_partial",
    "after the tensors": "write_run",
    "before the manifest": "write_manifest",
    "before the new name": "publish",
    "before the tracker": "_write_durably",
    "before old ones go": "remove_old",
}


@pytest.mark.parametrize("moment", KILLS.values(), ids=KILLS.keys())
def test_a_kill_inside_a_save(
    moment: str, data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iteration 4 is being saved; iteration 2 is whole."""
    original = getattr(checkpoint_files, moment)

    def kill_at_second_save(*arguments: Any) -> Any:
        is_second = checkpoint_files.read_tracker(tmp_path) == (4 if moment == "remove_old" else 2)
        if is_second and (moment != "_write_durably" or arguments[0].name == checkpoint_files.TRACKER):
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint_files, moment, kill_at_second_save)
        run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2))
    latest = checkpoint_files.read_tracker(tmp_path)
    assert latest == (4 if moment == "remove_old" else 2)
    assert checkpoint_files.find_damage(checkpoint_files.checkpoint_path(tmp_path, latest)) is None
    assert _resume(data, tmp_path) == (0, "")
    assert metrics(tmp_path) == metrics(straight)
    assert {path.name for path in tmp_path.glob("iter_*")} == {f"iter_000000{iteration}" for iteration in (2, 4, 6)}


def _start(repository: Path, flags: list[str]) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would start it."""
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(repository / "pretrain_gpt_ltd.py"), *flags],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _steps_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


@pytest.mark.slow
def test_kills_at_random_moments(repository: Path, data: str, tmp_path: Path) -> None:
    """Every step saves, so most moments are inside a save. Where a kill falls does not decide what must hold."""
    flags = ["--train-iters", 60, "--ltd-growth-steps", 40, "--eval-iters", 0, "--keep-last", 2]
    assert run_status(tiny_flags(data, "--save", tmp_path / "straight", *flags)) == (0, "")
    folder = tmp_path / "killed"
    flags = [*flags, "--save", folder, "--load", folder, "--save-interval", 1]
    draw = random.Random()
    for kill in range(3):
        before = _steps_logged(folder)
        process = _start(repository, tiny_flags(data, *flags))
        try:
            _wait_for(process, lambda before=before, kill=kill: _steps_logged(folder) >= before + 3 + 2 * kill)
            time.sleep(draw.uniform(0.0, 0.2))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        latest = checkpoint_files.read_tracker(folder)
        assert latest is not None
        assert checkpoint_files.find_damage(checkpoint_files.checkpoint_path(folder, latest)) is None
    assert run_status(tiny_flags(data, *flags, "--save-interval", 60)) == (0, "")
    assert metrics(folder) == metrics(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "said"), [
    (signal.SIGTERM, 0, ""),
    (signal.SIGINT, 130, "pretrain_gpt_ltd.py: interrupted\n"),
])  # fmt: skip
def test_signals_to_the_process(
    number: int, status: int, said: str, repository: Path, data: str, tmp_path: Path
) -> None:
    """The whole process group gets it, as from a terminal or a scheduler: helper processes too."""
    flags = ["--train-iters", 100_000, "--ltd-growth-steps", 40, "--eval-iters", 0, "--save", tmp_path]
    process = _start(repository, tiny_flags(data, *flags, "--save-interval", 3))
    try:
        _wait_for(process, lambda: checkpoint_files.read_tracker(tmp_path) is not None)
        os.killpg(process.pid, number)
        stderr = process.communicate(timeout=60)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, stderr) == (status, said)
    latest = checkpoint_files.read_tracker(tmp_path)
    assert latest == _steps_logged(tmp_path)
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
def test_a_signal_saves_and_leaves(
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
    assert _resume(data, tmp_path)[0] == 0
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
def test_leaving_on_request(
    flag: list[object], saved: int, why: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_status(tiny_flags(data, "--save", tmp_path, *flag)) == (0, "")
    assert f"left after step {saved}: {why}" in capsys.readouterr().out
    assert checkpoint_files.saved_iterations(tmp_path) == [saved]


def test_a_full_disk(data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses to let a file grow, in whichever process writes it; the checkpoint before stays current."""
    original = checkpoint_files.start_partial
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(folder: Path, iteration: int) -> Path:
        if iteration == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return original(folder, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "start_partial", fill_disk)
        try:
            status, said = run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and len(said.splitlines()) == 1, said
    assert f"stopped: the checkpoint of iteration 4 could not be written to --save {tmp_path}" in said
    assert "fail" in said and f"{tmp_path / 'iter_0000002'} stays the last" in said
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000002"]
    assert _resume(data, tmp_path) == (0, "")
    assert metrics(tmp_path) == metrics(straight)


def test_a_full_disk_under_the_log(data: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    status, said = run_status(tiny_flags(data, "--log-dir", tmp_path))
    assert status == 1 and len(said.splitlines()) == 1, said
    assert f"stopped: {tmp_path / 'metrics.jsonl'} cannot be written (No space left on device)" in said


def _scale_loss(monkeypatch: pytest.MonkeyPatch, step: int, factor: float) -> None:
    """Multiply the loss of ``step`` (1-based; 2 microbatches a step, no evaluation) by ``factor``."""
    from megatron.ltd.training import step as module

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
    assert status == 1 and len(said.splitlines()) == 1, said
    assert "stopped: the loss of step 5 is nan; nothing was saved of it" in said and "lower --lr" in said
    assert checkpoint_files.saved_iterations(tmp_path) == [2, 4]
    assert _steps_logged(tmp_path) == 4


def test_nan_is_skipped_on_request(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step leaves no trace in the weights, and the learning rate's clock stands still."""
    _scale_loss(monkeypatch, 5, float("nan"))
    flags = tiny_flags(data, "--save", tmp_path, "--eval-iters", 0, "--no-check-for-nan-in-loss-and-grad")
    assert run_status(flags) == (0, "")
    lines = metrics(tmp_path)
    assert lines["train", 5]["loss"] is None
    assert lines["train", 6]["lr"] == lines["train", 5]["lr"] and 5.0 < lines["train", 6]["loss"] < 6.5


def test_a_spike_stops_the_run(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _scale_loss(monkeypatch, 25, 10.0)
    flags = ["--train-iters", 26, "--eval-iters", 0, "--check-for-spiky-loss", "--save", tmp_path]
    status, said = run_status(tiny_flags(data, *flags))
    assert status == 1 and "the loss of step 25" in said and "--spiky-loss-factor 3.0" in said, said
    assert checkpoint_files.saved_iterations(tmp_path) == []


def test_a_complete_run_has_nothing_left(data: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(trained / "iter_0000006")
    assert _resume(data, trained) == (0, "")
    assert "already at step 6 of 6: nothing is left to do" in capsys.readouterr().out
    assert snapshot(trained / "iter_0000006") == before


def test_load_and_save_may_differ(data: str, straight: Path, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "iter_0000002").symlink_to(straight / "iter_0000002")
    assert run_status(tiny_flags(data, "--load", tmp_path / "from", "--save", tmp_path / "to")) == (0, "")
    left, whole = metrics(tmp_path / "to"), metrics(straight)
    assert left == {key: whole[key] for key in whole if key[1] > 2}


def test_an_empty_folder_of_its_own_starts_anew(data: str, tmp_path: Path) -> None:
    """The same command starts a run and continues it."""
    assert _resume(data, tmp_path, "--exit-interval", 2) == (0, "")
    assert checkpoint_files.saved_iterations(tmp_path) == [2]


def test_keep_last(data: str, tmp_path: Path) -> None:
    flags = tiny_flags(data, "--save", tmp_path, "--save-interval", 1, "--keep-last", 2, "--eval-iters", 0)
    assert run_status(flags) == (0, "")
    assert checkpoint_files.saved_iterations(tmp_path) == [5, 6]
