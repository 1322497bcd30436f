"""A run of two ranks under torchrun, which is killed again and again and goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from megatron.ltd.errors import RunStopped

from .processes import SCRIPT, kill_all, ranks, start, torchrun
from .saved import Saved

VICTIMS = ("rank 0", "rank 1", "both ranks", "the launcher", "the node")
_LONGEST_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.02
_START_SHARE = 0.15  # share of the kills that happen while the run is starting


class TwoRanks:
    """A run in ``folder``, which saves to the folder that ``words`` names; torchrun may restart the ranks."""

    def __init__(self, folder: Path, words: Sequence[str], max_restarts: int) -> None:
        self.saved = Saved(folder / "save")
        self._folder = folder
        self._command = [*torchrun("--max-restarts", str(max_restarts)), str(SCRIPT), *words]
        self._output = folder / "output.txt"
        folder.mkdir(parents=True, exist_ok=True)
        self._start()

    def _start(self) -> None:
        with self._output.open("a", encoding="utf-8") as output:
            self._launcher = start(self._command, output, folder=self._folder)

    def end(self) -> None:
        """Kill all remaining processes of the run."""
        kill_all(self._launcher)

    def said(self) -> str:
        """All that the run has printed."""
        return self._output.read_text(encoding="utf-8")

    def kill_at_random(self, draw: random.Random, num_steps: int, start_seconds: float) -> str:
        """Kill a random part of the run at a random moment before step ``num_steps``; what and when."""
        before, unfinished = self.saved.num_steps(), self.saved.unfinished()
        if before and draw.random() < _START_SHARE:
            self._wait_for(lambda: len(ranks(self._launcher)) == 2)
            time.sleep(draw.uniform(0.0, start_seconds))
        else:
            self._wait_for(lambda: self.saved.num_steps() > before + draw.randrange(max(1, num_steps)))
            time.sleep(draw.uniform(0.0, 0.1))
        what = draw.choice(VICTIMS)
        self._kill(what)
        moment = self.saved.moment_since(before, unfinished)
        if what in ("the launcher", "the node"):
            self._start()
        return f"kill -9 of {what} {moment}"

    def _kill(self, what: str) -> None:
        """Kill the processes that ``what`` names, and wait until none of the current ranks is left."""
        victims = ranks(self._launcher)
        if what == "the node":
            kill_all(self._launcher)
        if what == "the launcher":
            self._launcher.kill()
            self._launcher.wait()
        for rank, process in victims.items():
            if what in ("both ranks", f"rank {rank}") and process.is_running():
                process.kill()
        _, alive = psutil.wait_procs(victims.values(), timeout=_LONGEST_WAIT_SECONDS)
        if alive:
            raise RunStopped(
                f"{what} was killed, and {len(alive)} other still lives {_LONGEST_WAIT_SECONDS:.0f} s later"
            )

    def wait_for_end(self) -> None:
        """Wait until the run ends. Raises ``RunStopped`` if its exit status is not 0."""
        self._wait_for(lambda: False)

    def wait_for_steps(self) -> None:
        """Wait until the first step is in the log."""
        self._wait_for(lambda: self.saved.num_steps() > 0)

    def _wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until ``happened()`` or the run has ended. Raises ``RunStopped`` if its exit status is not 0."""
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while not happened():
            if self._launcher.poll() is not None:
                if happened() or self._launcher.poll() == 0:
                    return
                raise RunStopped(f"a run ended with status {self._launcher.poll()}:\n{self.said()[-2000:]}")
            if time.monotonic() > deadline:
                raise RunStopped(f"nothing has happened for {_LONGEST_WAIT_SECONDS:.0f} s:\n{self.said()[-2000:]}")
            time.sleep(_POLL_SECONDS)


def processes_left(folder: Path, grace_seconds: float = 10.0) -> int:
    """The number of processes of runs in ``folder`` that are still alive a while after the runs ended."""
    deadline = time.monotonic() + grace_seconds
    while True:
        found = (process.info for process in psutil.process_iter(["cmdline", "status"]))
        commands = [info["cmdline"] or [] for info in found if info["status"] != psutil.STATUS_ZOMBIE]
        left = sum(str(SCRIPT) in words and any(f"{folder}/" in word for word in words) for words in commands)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)
