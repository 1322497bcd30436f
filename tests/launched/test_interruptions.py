"""A run of two processes that are signalled, killed or stopped: it ends in time, says why, and continues bit for bit.

These are real processes under torchrun, or without it as Slurm's ``srun`` starts them.
"""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron.ltd.checkpoint import files as checkpoint_files
from tests.end_to_end.processes import steps_logged
from tests.end_to_end.runs import metrics, tiny_flags
from tests.launched.launched import Launched, torchrun, two_ranks
from tests.support import REPOSITORY
from tests.support_errors import assert_names
from tests.support_processes import PATIENCE_SECONDS

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

NUM_STEPS = 40
ENDS_WITHIN_SECONDS = PATIENCE_SECONDS


def flags(dataset: str, save: Path, *more: object) -> list[str]:
    """The tiny run on two tensor-parallel processes, which continues itself and saves every second step."""
    return tiny_flags(
        dataset, "--train-iters", NUM_STEPS, "--tensor-model-parallel-size", 2, "--eval-iters", 0,
        "--save", save, "--load", save, "--save-interval", 2, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight")
    with torchrun(flags(dataset, folder / "save"), folder) as run:
        assert run.end()[0] == [0], run.said
    return folder / "save"


def is_saving(save: Path) -> bool:
    return any(save.glob("iter_*.partial"))


def contents(save: Path) -> dict[str, Any]:
    """Size and checksum of the files of tensors in the last checkpoint."""
    manifest = checkpoint_files.read_manifest(checkpoint_files.checkpoint_path(save, NUM_STEPS))
    assert manifest is not None
    return {name: entry for name, entry in manifest.items() if name.endswith(".distcp")}


def assert_equal_runs(save: Path, straight: Path) -> None:
    assert metrics(save) == metrics(straight)
    assert contents(save) == contents(straight) and len(contents(save)) == 2
    path = checkpoint_files.checkpoint_path(save, NUM_STEPS)
    assert checkpoint_files.find_damage(path) is None
    assert not is_saving(save)


def lost_contact(said: str) -> list[str]:
    return [line for line in said.splitlines() if "lost contact with another process" in line]


def kill_inside_a_save(run: Launched, save: Path, rank: int) -> None:
    """Kill a rank a few steps on, see the other end in time and with one line, and torchrun start both again."""
    logged = steps_logged(save)
    run.wait_for(
        lambda: steps_logged(save) >= logged + 4 and is_saving(save) and bool(checkpoint_files.candidates(save))
    )
    lines, loads = len(lost_contact(run.said)), run.said.count("loading ")
    victim, other = run.rank(rank), run.rank(1 - rank)
    victim.kill()
    psutil.wait_procs([other], timeout=ENDS_WITHIN_SECONDS)
    assert not other.is_running(), run.said
    (line,) = lost_contact(run.said)[lines:]
    assert line.startswith(f"pretrain_gpt_ltd.py: stopped: rank {1 - rank} lost contact with another process (")
    assert f"continue with --load {save}" in line and "Traceback" not in run.said
    run.wait_for(lambda: run.said.count("loading ") > loads)


def test_sigterm_to_one_rank_then_a_kill(dataset: str, straight: Path, tmp_path: Path) -> None:
    """SIGTERM to one rank makes both exit with a checkpoint; then torchrun restarts killed ranks."""
    save = tmp_path / "save"
    with torchrun(flags(dataset, save), tmp_path / "first") as run:
        run.wait_for(lambda: steps_logged(save) >= 5)
        run.rank(1).send_signal(signal.SIGTERM)
        status, said = run.end()
    assert status == [0] and "SIGTERM arrived" in said and "Traceback" not in said, said
    assert 5 <= steps_logged(save) < NUM_STEPS and checkpoint_files.read_tracker(save) == steps_logged(save)

    with torchrun(flags(dataset, save), tmp_path / "second", "--max-restarts", "2") as run:
        kill_inside_a_save(run, save, 1)
        assert run.end()[0] == [0], run.said
    assert_equal_runs(save, straight)


def test_a_kill_inside_an_asynchronous_save(dataset: str, straight: Path, tmp_path: Path) -> None:
    save = tmp_path / "save"
    with torchrun(flags(dataset, save, "--async-save"), tmp_path, "--max-restarts", "2") as run:
        kill_inside_a_save(run, save, 0)
        assert run.end()[0] == [0], run.said
    assert_equal_runs(save, straight)


def test_the_disk_of_one_rank_is_full(dataset: str, tmp_path: Path) -> None:
    """One rank cannot write: both ranks end with the same line, and the previous checkpoint stays valid."""
    save = tmp_path / "save"
    more = ("--train-iters", 100_000, "--no-check-for-nan-in-loss-and-grad", "--async-save")
    with two_ranks(flags(dataset, save, *more), tmp_path) as run:
        run.wait_for(lambda: checkpoint_files.read_tracker(save) is not None)
        limited = run.rank(1)
        resource.prlimit(limited.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
        status, said = run.end()
    assert status == [1, 1], said
    (line,) = [line for line in said.splitlines() if "stopped:" in line]
    latest = checkpoint_files.read_tracker(save)
    assert latest is not None and "Traceback" not in said
    assert_names(line, f"--save {save}", "rank 1", checkpoint_files.checkpoint_path(save, latest))
    assert not is_saving(save)
    assert checkpoint_files.find_damage(checkpoint_files.checkpoint_path(save, latest)) is None


def test_a_rank_that_no_longer_answers(dataset: str, tmp_path: Path) -> None:
    more = ("--train-iters", 100_000, "--distributed-timeout-minutes", 0.15)
    save = tmp_path / "save"
    with two_ranks(flags(dataset, save, *more), tmp_path) as run:
        run.wait_for(lambda: checkpoint_files.read_tracker(save) is not None)
        stopped, waiting = run.rank(1), run.rank(0)
        stopped.suspend()
        assert waiting.wait(ENDS_WITHIN_SECONDS) == 1, run.said
        (line,) = lost_contact(run.said)
        assert "rank 0 lost contact" in line and "Timed out" in line and "Traceback" not in run.said
        stopped.kill()
        run.end()


_BUGGY = f"""
import os, runpy, sys
from megatron.ltd.training.step import Stepper
train = Stepper.train
def buggy(self, batches, plan, step, *rest):
    if step == 3 and os.environ["RANK"] == "1":
        raise ZeroDivisionError("a bug of ours")
    return train(self, batches, plan, step, *rest)
Stepper.train = buggy
sys.argv[0] = {str(REPOSITORY / "pretrain_gpt_ltd.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_error_on_one_rank(dataset: str, tmp_path: Path) -> None:
    """The rank with the error shows a traceback; the other rank ends with one line."""
    script = tmp_path / "buggy.py"
    script.write_text(_BUGGY)
    with two_ranks(flags(dataset, tmp_path / "save"), tmp_path, script) as run:
        status, said = run.end(ENDS_WITHIN_SECONDS)
    assert status == [1, 1] and said.count("ZeroDivisionError: a bug of ours") == 1, said
    (line,) = lost_contact(said)
    assert "rank 0 lost contact" in line and f"continue with --load {tmp_path / 'save'}" in line


_FIRST_IS_LATE = """
import os, time
from megatron.ltd.errors import UserError, run_command
def main():
    time.sleep(0.0 if os.environ["RANK"] == "1" else 1.0)
    raise UserError("--lr is -1: it must be above 0")
run_command(main)
"""


def test_a_mistake_that_the_first_rank_finds_last(tmp_path: Path) -> None:
    """Plain torchrun ends all ranks when one exits: the line is printed once, and stands in torchrun's report."""
    script = tmp_path / "wrong.py"
    script.write_text(_FIRST_IS_LATE)
    with torchrun([], tmp_path, script=script) as run:
        status, said = run.end()
    line = "wrong.py: error: --lr is -1: it must be above 0"
    assert status == [1] and said.splitlines().count(line) == 1, said
    assert said.splitlines().count(f"  traceback : {line}") == 1 and "exitcode  : 2" in said, said
