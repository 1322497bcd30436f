"""Sharing the time among the campaigns, and the trials of a campaign among workers.

A worker is a process forked from one that has imported everything. Worker 0 of two makes the trials 0, 2, 4 ... that
the journal does not have yet.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron.ltd.errors import RunStopped, UserError

from .campaigns import Campaign, campaign
from .campaigns.corruption import TARGETS, target_of
from .config import TortureConfig
from .material import make_material
from .trials import Journal, Trial

_LONGEST_SHOWN = 400


@contextmanager
def prepared() -> Iterator[Path]:
    """The folder of the material, which is removed at the end with all that trials have left in it."""
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        yield make_material(Path(folder))


def check_targets(config: TortureConfig) -> None:
    """Raise ``UserError`` for a ``--target`` that no target's name begins with."""
    for asked in config.target:
        if not any(name.startswith(asked) for name in TARGETS):
            raise UserError(f"--target {asked}: no target's name begins so; they are {'; '.join(TARGETS)}")


def run_campaigns(config: TortureConfig, journal: Journal, material: Path) -> None:
    """Run the chosen campaigns, one after the other, each for its share of the time.

    Trials that were wrong are made again, and so are those that were skipped, which may be possible by now.
    """
    done = {(trial.campaign, trial.number) for trial in journal.read(config.seed) if trial.is_right}
    started = time.monotonic()
    for name, seconds in config.deadlines.items():
        deadline, workers = started + seconds, config.num_workers
        made = campaign(name)(material)
        numbers = {number for own, number in done if own == name}
        pids = [_fork_worker(config, journal, material, name, made, numbers, range(first, 1 << 53, workers), deadline)
                for first in range(workers)]  # fmt: skip
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if any(statuses):
            raise RunStopped(f"a worker of {name} failed; its traceback is above")


def repeat(config: TortureConfig, material: Path) -> Trial:
    """Make the one trial that ``config.trial`` names, and print what it printed."""
    (name,) = config.campaign
    assert config.trial is not None
    folder = material.parent / "trial"
    made = _attempt(config, name, campaign(name)(material), config.trial, folder)
    for path in sorted(folder.parent.glob("trial*.said")):
        print(path.read_text(encoding="utf-8", errors="replace"), end="")
    return made


def _fork_worker(
    config: TortureConfig, journal: Journal, material: Path, name: str, made: Campaign, done: set[int],
    numbers: range, deadline: float,
) -> int:  # fmt: skip
    """Start a worker that makes the trials ``numbers`` until the deadline; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in numbers:
            if time.monotonic() > deadline or number >= (config.trials or 1 << 53):
                break
            if number not in done and is_chosen(config, number):
                folder = material.parent / f"{name}-{number}"
                trial = _attempt(config, name, made, number, folder)
                journal.add(config.seed, trial)
                if trial.is_wrong:
                    print(f"wrong: {name} {number}: {trial.problem}: {trial.what}"[:_LONGEST_SHOWN], flush=True)
                remove_all_of(folder)
        status = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def is_chosen(config: TortureConfig, number: int) -> bool:
    """Whether the trial is one that ``--target`` asks for."""
    return not config.target or target_of(number).startswith(config.target)


def _attempt(config: TortureConfig, name: str, made: Campaign, number: int, folder: Path) -> Trial:
    return made.attempt(number, random.Random(f"{config.seed} {name} {number}"), folder)


def remove_all_of(folder: Path) -> None:
    """Remove the folder of a trial and what is beside it: of trial 4 not that of 43, which another worker may make."""
    for path in folder.parent.glob(f"{folder.name}*"):
        if not path.name.removeprefix(folder.name)[:1].isdigit():
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a file or a folder, whatever a trial has made of it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
