"""Signals and kill -9 at random moments of chains of runs that save, and resume from what they saved.

    two ranks      under torchrun: one rank or both (torchrun restarts them), the launcher alone (its ranks notice, save
                   and exit), or the node: launcher and ranks (started again)
    one process    started as users do, or forked from one that has imported everything, so that hundreds fit in an hour

A moment is a random time after the start, or a few milliseconds after the start of a save. Right: the chain ends
bit-equal to the run that nothing interrupts, in weights, optimizer state and the log of every step; no run ends with a
traceback; no process is left.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron.ltd.errors import RunStopped

from ..child import Bounds, Child, Ending, in_child
from ..material import GPT
from ..saved import Saved, difference
from ..trials import Trial
from ..two_ranks import TwoRanks, processes_left
from ..warm import REPOSITORY, run_program

_SCRIPT = REPOSITORY / "pretrain_gpt_ltd.py"
_STEPS, _SAVE_INTERVAL = 40, 3
_MOST_KILLS = {"two ranks": 4, "one process": 3, "one process, forked": 9}
_SIGNALS = {"kill -9": (signal.SIGKILL,), "SIGTERM": (signal.SIGTERM,), "Ctrl-C": (signal.SIGINT,),
            "two Ctrl-C": (signal.SIGINT, signal.SIGINT)}  # fmt: skip
_SHARES = (7, 1, 1, 1)
_STATUSES: Mapping[str, tuple[int, ...]] = {
    "kill -9": (-signal.SIGKILL,), "SIGTERM": (0, -signal.SIGTERM), "Ctrl-C": (130, -signal.SIGINT),
    "two Ctrl-C": (130, -signal.SIGINT),
}  # fmt: skip
"""A run ends with these; before it listens to signals, they end it as they end any program."""
_PATIENT = Bounds(300.0, 60.0)
KINDS = ("two ranks", *["one process, forked"] * 6, "one process", *["one process, forked"] * 6)


@dataclass
class _Straight:
    """The run that nothing interrupts."""

    saved: Saved
    seconds: float
    start_seconds: float


class Kills:
    """See the module."""

    def __init__(self, material: Path) -> None:
        self._material = material
        self._straight: dict[str, _Straight] = {}

    def attempt(self, number: int, draw: random.Random, folder: Path) -> Trial:
        kind, is_async = KINDS[number % len(KINDS)], draw.random() < 0.5
        straight = self._straight_of(kind)
        moments: list[str] = []
        started = time.monotonic()
        chain = partial(self._two_ranks if kind == "two ranks" else self._one_process, kind, draw, folder, straight)
        try:
            problem = chain(self._words(folder, is_async), moments)
        except RunStopped as stopped:
            problem = str(stopped)[-400:]
        seconds = time.monotonic() - started
        if not problem:
            problem = difference(Saved(folder / "save"), straight.saved, _STEPS)
        if not problem and processes_left(folder):
            problem = "processes are left behind"
        what = f"{kind}, {'asynchronous' if is_async else 'synchronous'} saves: {', '.join(moments)}"
        facts: Mapping[str, Any] = {"moments": moments, "seconds lost": max(0.0, seconds - straight.seconds)}
        kind = f"{kind}, {'asynchronous' if is_async else 'synchronous'} saves"
        return Trial("kills", number, kind, what, "", problem, seconds, facts)

    def _words(self, folder: Path, is_async: bool) -> list[str]:
        words = [word if word != "data" else str(self._material / "data") for word in GPT]
        save = str(folder / "save")
        words += ["--train-iters", str(_STEPS), "--save", save, "--load", save, "--save-interval", str(_SAVE_INTERVAL)]
        words += "--eval-interval 10 --ltd-growth-steps 20 --use-distributed-optimizer --keep-last 3".split()
        return [*words, "--async-save"] if is_async else words

    def _straight_of(self, kind: str) -> _Straight:
        """The undisturbed run of a kind; it is run when it is first needed."""
        place = "two-ranks" if kind == "two ranks" else "one-process"
        if place not in self._straight:
            folder = self._material.with_name(f"straight-{place}-{os.getpid()}")
            shutil.rmtree(folder, ignore_errors=True)
            words, started = self._words(folder, False), time.monotonic()
            if kind == "two ranks":
                run = TwoRanks(folder, words, 0)
                try:
                    run.wait_for_steps()
                    start_seconds = time.monotonic() - started
                    run.wait_for_end()
                finally:
                    run.end()
            else:
                start_seconds = 0.0
                ending = in_child(partial(run_program, _SCRIPT, words), folder, _PATIENT)
                if ending.status != 0:
                    raise RunStopped(f"the undisturbed run ended with {ending}")
            self._straight[place] = _Straight(Saved(folder / "save"), time.monotonic() - started, start_seconds)
        return self._straight[place]

    def _two_ranks(
        self, kind: str, draw: random.Random, folder: Path, straight: _Straight, words: list[str], moments: list[str]
    ) -> str:
        kills = draw.randint(1, _MOST_KILLS[kind])
        run = TwoRanks(folder, words, kills)
        try:
            for left in range(kills, 0, -1):
                moments.append(
                    run.kill_at_random(draw, 2 * (_STEPS // (kills + 1)) // 2 + left, straight.start_seconds)
                )
            run.wait_for_end()
        finally:
            run.end()
        return ""

    def _one_process(
        self, kind: str, draw: random.Random, folder: Path, straight: _Straight, words: list[str], moments: list[str]
    ) -> str:
        function = partial(run_program if "forked" in kind else _exec, _SCRIPT, words)
        saved, seconds = Saved(folder / "save"), straight.seconds + (0.0 if "forked" in kind else 6.0)
        for _ in range(draw.randint(1, _MOST_KILLS[kind])):
            child = Child(function, folder, _PATIENT)
            steps, unfinished = saved.num_steps(), saved.unfinished()
            _wait_for_a_moment(child, saved, draw, seconds)
            (what,) = draw.choices(list(_SIGNALS), _SHARES)
            if child.has_ended():
                break
            for sent in _SIGNALS[what]:
                child.send(sent) if draw.random() < 0.5 else os.kill(child.pid, sent)
                time.sleep(draw.uniform(0.0, 0.05))
            ending = child.wait()
            moments.append(f"{what} {saved.moment_since(steps, unfinished)}")
            problem = _problem(ending, what)
            if problem:
                return problem
        ending = in_child(function, folder, _PATIENT)
        return "" if ending.status == 0 and not ending.said else f"the last run ended with {ending}"


def _exec(script: Path, words: list[str]) -> None:
    """Become a new Python, started as a user starts it."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    os.execve(sys.executable, [sys.executable, str(script), *words], environment)


def _wait_for_a_moment(child: Child, saved: Saved, draw: random.Random, seconds: float) -> None:
    """A random time, or that of the start of one of the next saves and a little more."""
    unfinished = saved.unfinished()
    deadline = time.monotonic() + draw.uniform(0.05, seconds)
    waits_for_save = draw.random() < 0.6
    while not child.has_ended():
        if waits_for_save and not (found := saved.unfinished()) <= unfinished:
            unfinished = found
            if draw.random() < 0.4:
                time.sleep(draw.uniform(0.0, 0.03))
                return
        if not waits_for_save and time.monotonic() > deadline:
            return
        time.sleep(0.002)


def _problem(ending: Ending, what: str) -> str:
    """What is wrong about the end of a run that got a signal; it may have ended by itself just before."""
    if ending.was_killed:
        return f"no end within {ending.seconds:.0f} s after {what}"
    if "Traceback (most recent call last)" in ending.said:
        return f"a traceback after {what}: {ending.last_line[:200]}"
    if ending.status not in (0, *_STATUSES[what]):
        return f"exit status {ending.status} after {what}: {ending.last_line[:200]}"
    return "processes are left behind" if ending.left else ""
