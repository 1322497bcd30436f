"""The soak test: an undisturbed run, and the same run killed repeatedly.

    what          one rank or both (torchrun restarts them), the launcher alone (its ranks notice, save and exit), or
                  the node: launcher and ranks (started again)
    when          a random number of steps after the last kill, at a random moment of a step; sometimes while the run
                  is still starting

Processes are killed with ``SIGKILL``. A kill counts as inside a save if it leaves an unfinished checkpoint behind.
"""

from __future__ import annotations

import filecmp
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.errors import RunStopped

from .config import SoakConfig
from .processes import SCRIPT
from .run import SoakedRun

_START_SHARE = 0.15  # share of the kills that happen while the run is starting
_STEPS_SHARE = 1.6  # maximum number of steps before the next kill, as a multiple of the steps left per kill
_VICTIMS = ("rank 0", "rank 1", "both ranks", "the launcher", "the node")
_END_SECONDS = 60.0  # timeout for the ranks to end


@dataclass(frozen=True)
class Kill:
    """What was killed, and when."""

    what: str
    step: int
    """The last step in the log at that time."""
    moment: str
    """"starting", "training" or "saving"."""


@dataclass(frozen=True)
class Result:
    """The result of the soak test."""

    kills: list[Kill]
    resumes: int
    """The number of starts that loaded a checkpoint."""
    num_steps: int
    repeated_steps: int
    """Steps that were computed again because they were not saved."""
    straight_seconds: float
    seconds: float
    longest_restart_seconds: float
    """The longest time from a kill, or the first of several without a step in between, to the next step."""
    equal_steps: bool
    """Whether the logs of all steps and evaluations are equal, except for timings."""
    equal_weights: bool
    """Whether weights and optimizer state of the last checkpoint are bit-equal."""
    processes_left: int

    @property
    def is_good(self) -> bool:
        return self.equal_steps and self.equal_weights and not self.processes_left


def soak(config: SoakConfig, data: str, folder: Path, say: Callable[[str], None]) -> Result:
    """Run both, and compare them. Raises ``RunStopped`` if a run fails or hangs."""
    started = time.monotonic()
    straight = SoakedRun(folder / "straight", lambda save: config.run_flags(data, save), config.kills)
    try:
        straight.wait_for_step(0)
        start_seconds = time.monotonic() - started
        straight.wait_for_end()
    finally:
        straight.kill()
    straight_seconds = time.monotonic() - started
    say(f"undisturbed: {config.num_steps} steps in {straight_seconds:.0f} s, {start_seconds:.1f} s of them to start")

    started = time.monotonic()
    soaked = SoakedRun(folder / "soaked", lambda save: config.run_flags(data, save), config.kills)
    try:
        step_seconds = (straight_seconds - start_seconds) / config.num_steps  # including saves
        kills, restarts = _kill_again_and_again(config, soaked, step_seconds, start_seconds, say)
        soaked.wait_for_end()
    finally:
        soaked.kill()
    return Result(
        kills=kills,
        resumes=soaked.said().count("loading "),
        num_steps=config.num_steps,
        repeated_steps=soaked.num_steps() - config.num_steps,
        straight_seconds=straight_seconds,
        seconds=time.monotonic() - started,
        longest_restart_seconds=max(restarts),
        equal_steps=soaked.timeless_log() == straight.timeless_log(),
        equal_weights=_equal_files(soaked.save, straight.save, config.num_steps),
        processes_left=_processes_left(str(folder)),
    )


def _kill_again_and_again(
    config: SoakConfig, run: SoakedRun, step_seconds: float, start_seconds: float, say: Callable[[str], None]
) -> tuple[list[Kill], list[float]]:
    """Kill the run ``--kills`` times; return the kills, and the seconds from each kill, or series of kills, to a new
    step.
    """
    draw = random.Random(config.seed)
    kills: list[Kill] = []
    restarts: list[float] = []
    steps_before = 0
    killed: float | None = None
    while len(kills) < config.kills:
        is_early = bool(kills) and draw.random() < _START_SHARE
        if is_early:
            run.wait_for_ranks()
            time.sleep(draw.uniform(0.0, start_seconds))
        else:
            run.wait_for_step(steps_before)
        if killed is not None and run.num_steps() > steps_before:
            restarts.append(time.monotonic() - killed)
            killed = None
        if not is_early:
            share = (config.num_steps - run.last_step()) / (config.kills - len(kills) + 1)
            run.wait_for_step(steps_before + draw.randrange(max(1, int(_STEPS_SHARE * share))))
            time.sleep(draw.uniform(0.0, config.save_interval * step_seconds))
        killed = killed or time.monotonic()
        kill = _kill(run, draw.choice(_VICTIMS), steps_before)
        steps_before = run.num_steps()
        kills.append(kill)
        say(f"kill {len(kills)}/{config.kills}: {kill.what}, {kill.moment}, after step {kill.step}/{config.num_steps}")
    say(f"{config.num_steps - kills[-1].step} more steps to its end")
    run.wait_for_step(steps_before)
    assert killed is not None
    restarts.append(time.monotonic() - killed)
    return kills, restarts


def _kill(run: SoakedRun, what: str, steps_before: int) -> Kill:
    """Kill the processes that ``what`` names, and wait until none of the current ranks is left."""
    victims = run.ranks()
    if what == "the node":
        run.kill()
    if what == "the launcher":
        run.kill_launcher()
    for rank, process in victims.items():
        if what in ("both ranks", f"rank {rank}") and process.is_running():
            process.kill()
    _, alive = psutil.wait_procs(victims.values(), timeout=_END_SECONDS)
    if alive:
        raise RunStopped(f"{what} was killed, and {len(alive)} other still lives {_END_SECONDS:.0f} s later")
    is_saving = run.finds_unfinished()
    if what in ("the launcher", "the node"):
        run.start()
    step = run.last_step()
    return Kill(what, step, "saving" if is_saving else "training" if run.num_steps() > steps_before else "starting")


def _equal_files(one: Path, other: Path, iteration: int) -> bool:
    """Whether two checkpoints contain the same tensor files, byte for byte."""
    folders = [checkpoint_files.checkpoint_path(save, iteration) for save in (one, other)]
    names = [sorted(path.name for path in folder.glob("*.distcp")) for folder in folders]
    same, _, _ = filecmp.cmpfiles(*folders, names[0], shallow=False)
    return bool(names[0]) and names[0] == names[1] and sorted(same) == names[0]


def _processes_left(folder: str) -> int:
    """The number of processes of runs in ``folder`` that are still alive shortly after the runs ended."""
    time.sleep(2.0)
    found = (process.info for process in psutil.process_iter(["cmdline", "status"]))
    commands = [info["cmdline"] or [] for info in found if info["status"] != psutil.STATUS_ZOMBIE]
    return sum(str(SCRIPT) in words and any(folder in word for word in words) for words in commands)
