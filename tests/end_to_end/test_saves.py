"""Saves that are interrupted, fail, or run in the background: the previous checkpoint stays valid, and a checkpoint
contains the state of its step.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.checkpoint.rank_shard import RankPlan
from megatron.ltd.errors import RunStopped
from tests.end_to_end.processes import patched_script, started, steps_logged, wait_for
from tests.end_to_end.runs import metrics, run_status, tiny_flags
from tests.support_errors import assert_names
from tests.support_processes import PATIENCE_SECONDS
from tests.warm.start import wait_for_scripts, warm_python

MODES = {"sync": (), "async": ("--async-save",)}
both_modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())


class Killed(BaseException):
    """Simulates a kill; no code under test may catch it."""


def assert_resumes(data: str, folder: Path, straight: Path, *more: object) -> None:
    """Resume the run in ``folder``; check that it equals the uninterrupted run and leaves no unfinished checkpoints."""
    flags = tiny_flags(data, "--save", folder, "--load", folder, "--save-interval", 2, *more)
    assert run_status(flags) == (0, "")
    assert metrics(folder) == metrics(straight)
    assert {path.name for path in folder.glob("iter_*")} == {f"iter_000000{iteration}" for iteration in (2, 4, 6)}
    for iteration in (2, 4, 6):
        assert tensors(folder, iteration) == tensors(straight, iteration)


def tensors(folder: Path, iteration: int) -> dict[str, dict[str, int]]:
    """Size and checksum of the tensor files of a checkpoint, which must be complete."""
    path = checkpoint_files.checkpoint_path(folder, iteration)
    assert checkpoint_files.find_damage(path) is None
    manifest = checkpoint_files.read_manifest(path) or {}
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}


KILLS = {
    "before anything is written": "start_partial",
    "after the tensors": "write_run",
    "before the manifest": "write_manifest",
    "before the new name": "publish",
    "before the tracker": "_write_durably",
    "before old ones go": "remove_old",
}


@both_modes
@pytest.mark.parametrize("moment", KILLS.values(), ids=KILLS.keys())
def test_a_kill_inside_a_save(
    moment: str, mode: Sequence[str], data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill happens while iteration 4 is saved; the checkpoint of iteration 2 is complete."""
    original = getattr(checkpoint_files, moment)

    def kill_at_second_save(*arguments: Any) -> Any:
        is_second = checkpoint_files.read_tracker(tmp_path) == (4 if moment == "remove_old" else 2)
        if is_second and (moment != "_write_durably" or arguments[0].name == checkpoint_files.TRACKER):
            raise Killed
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint_files, moment, kill_at_second_save)
        run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2, *mode))
    assert checkpoint_files.read_tracker(tmp_path) == (4 if moment == "remove_old" else 2)
    assert_resumes(data, tmp_path, straight, *mode)


def _while_writing(monkeypatch: pytest.MonkeyPatch, what: Callable[[Path], None]) -> None:
    """Make every writer call ``what`` with its folder before it writes."""
    original = RankPlan.write_files

    def later(plan: RankPlan, check: Callable[[], None]) -> Any:
        what(plan._partial)
        return original(plan, check)

    monkeypatch.setattr(RankPlan, "write_files", later)


def test_training_goes_on_without_changing_what_is_saved(
    data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The writers of iterations 2 and 4 wait until two more steps are logged before they write."""

    def wait(partial: Path) -> None:
        iteration = int(partial.name[5:12])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while steps_logged(tmp_path) < min(iteration + 2, 6) and time.monotonic() < deadline:
            time.sleep(0.01)
        (tmp_path / f"written-{iteration}").write_text(str(steps_logged(tmp_path)))

    with monkeypatch.context() as patch:
        _while_writing(patch, wait)
        flags = tiny_flags(data, "--save", tmp_path, "--save-interval", 2, "--async-save")
        assert run_status(flags) == (0, "")
    assert [(tmp_path / f"written-{iteration}").read_text() for iteration in (2, 4)] == ["4", "6"]
    for iteration in (2, 4, 6):
        assert tensors(tmp_path, iteration) == tensors(straight, iteration)
    assert f"saved {tmp_path / 'iter_0000004'} in " in (said := capsys.readouterr().out)
    assert said.count(" s, training waited ") == 3


@both_modes
def test_a_full_disk(
    mode: Sequence[str], data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel limits the size of files, in whichever process writes them."""
    original = checkpoint_files.start_partial
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(folder: Path, iteration: int) -> Path:
        if iteration == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return original(folder, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "start_partial", fill_disk)
        try:
            status, said = run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2, *mode))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    assert_names(said.rstrip(), "iteration 4", f"--save {tmp_path}", tmp_path / "iter_0000002")
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000002"]
    assert_resumes(data, tmp_path, straight)


@both_modes
def test_a_writer_without_memory(
    mode: Sequence[str], data: str, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(partial: Path) -> None:
        if "004" in partial.name:
            raise MemoryError

    with monkeypatch.context() as patch:
        _while_writing(patch, fail)
        status, said = run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2, *mode))
    assert status == 1
    assert_names(said.rstrip(), "iteration 4", "MemoryError")
    assert_resumes(data, tmp_path, straight)


def test_a_save_in_progress_survives_a_divergence(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iteration 4 is valid, and step 5 diverges before all of iteration 4 is written."""
    from megatron.ltd.training import loop

    _while_writing(monkeypatch, lambda partial: time.sleep(0.5))
    monkeypatch.setattr(loop, "_divergence", lambda run, *rest: "diverged" if run.progress.iteration == 4 else None)
    status, said = run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2, "--async-save"))
    assert (status, said) == (1, "pretrain_gpt_ltd.py: stopped: diverged\n")
    assert checkpoint_files.read_tracker(tmp_path) == 4 and tensors(tmp_path, 4)


def test_a_log_that_cannot_be_written_beside_a_save(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing fails as on a full disk. Partial files are removed, and the error line says which checkpoint is left."""
    from megatron.ltd.training.log import RunLog

    def full(log: RunLog, record: Any) -> None:
        if record["iteration"] == 5:
            raise RunStopped("the log cannot be written")

    def second_never_ends(plan: RankPlan, check: Callable[[], None]) -> Any:
        number = next(saves)
        while number == 2:
            check()
            time.sleep(0.01)
        return original(plan, check)

    original, saves = RankPlan.write_files, iter(range(1, 100))
    monkeypatch.setattr(RankPlan, "write_files", second_never_ends)
    monkeypatch.setattr(RunLog, "train", full)
    flags = tiny_flags(data, "--save", tmp_path, "--save-interval", 2, "--async-save")
    status, said = run_status(flags)
    assert status == 1
    assert_names(said.rstrip(), "the log cannot be written", "iteration 4", tmp_path / "iter_0000002")
    assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000002"]


def test_an_immediate_exit_leaves_no_writer(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt, as after a second Ctrl-C, ends the run at once."""
    from megatron.ltd.training.step import Stepper

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    _while_writing(monkeypatch, lambda partial: time.sleep(3))
    original, calls = Stepper.train, iter(range(1, 100))
    monkeypatch.setattr(Stepper, "train", lambda *args: (original if next(calls) < 4 else interrupted)(*args))
    before = set(threading.enumerate())
    status, _ = run_status(tiny_flags(data, "--save", tmp_path, "--save-interval", 2, "--async-save"))
    assert status == 130
    assert set(threading.enumerate()) <= before
    assert checkpoint_files.saved_iterations(tmp_path) == []


_SLOW_WRITER = """
from megatron.ltd.checkpoint.rank_shard import RankPlan
write = RankPlan.write_files
def slow(plan, check):
    time.sleep(1.0)
    return write(plan, check)
RankPlan.write_files = slow
"""


@pytest.mark.slow
def test_a_signal_to_all_processes_in_the_first_save(data: str, tmp_path: Path) -> None:
    script = patched_script(tmp_path, _SLOW_WRITER)
    flags = tiny_flags(data, "--train-iters", 100_000, "--eval-iters", 0, "--save", tmp_path, "--save-interval", 3)
    with started([*flags, "--async-save", "--num-workers", "1"], script) as process:
        wait_for(process, lambda: any(tmp_path.glob("iter_0000003.*.partial")))
        os.killpg(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    assert process.returncode == 0
    latest = checkpoint_files.read_tracker(tmp_path)
    assert latest == steps_logged(tmp_path) and latest is not None and tensors(tmp_path, latest)
    assert 3 in checkpoint_files.saved_iterations(tmp_path)


@pytest.mark.slow
@both_modes
def test_kills_at_random_moments(mode: Sequence[str], data: str, tmp_path: Path) -> None:
    """Every step saves, so most kills happen during a save. The checks hold wherever a kill happens. The same command
    starts and resumes the run, and in the end nothing is left of what was not finished.
    """
    flags = ["--train-iters", 40, "--ltd-growth-steps", 30, "--eval-iters", 0, "--keep-last", 2, *mode]
    assert run_status(tiny_flags(data, "--save", tmp_path / "straight", *flags)) == (0, "")
    folder = tmp_path / "killed"
    flags = [*flags, "--save", folder, "--load", folder, "--save-interval", 1]
    draw = random.Random()
    for kill in range(2):
        before = steps_logged(folder)
        with started(tiny_flags(data, *flags), python=warm_python()) as process:
            wait_for(process, lambda before=before, kill=kill: steps_logged(folder) >= before + 3 + 2 * kill)
            time.sleep(draw.uniform(0.0, 0.2))
            os.killpg(process.pid, signal.SIGKILL)
        wait_for_scripts()
        latest = checkpoint_files.read_tracker(folder)
        assert latest is not None and tensors(folder, latest)
    assert run_status(tiny_flags(data, *flags, "--save-interval", 40)) == (0, "")
    assert metrics(folder) == metrics(tmp_path / "straight")
    assert tensors(folder, 40) == tensors(tmp_path / "straight", 40)
    assert not list(folder.glob("iter_*.partial"))


def test_keep_last(data: str, tmp_path: Path) -> None:
    flags = tiny_flags(data, "--save", tmp_path, "--save-interval", 1, "--keep-last", 2, "--eval-iters", 0)
    assert run_status(flags) == (0, "")
    assert checkpoint_files.saved_iterations(tmp_path) == [5, 6]
