"""Real processes of a run, started as users start them, to be signalled, stopped and killed.

    with torchrun(flags, tmp_path) as run:      an agent and its two ranks
        run.wait_for(lambda: run.steps() > 3)
        run.rank(1).kill()
        status, said = run.end()

Nothing of it outlives the block.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support_processes import PATIENCE_SECONDS
from tools.torture import processes
from tools.torture.processes import SCRIPT


class Launched:
    """Started processes, each with its ranks below it or a rank itself, and the file that all of them write to."""

    def __init__(self, started: Sequence[psutil.Popen], output: Path) -> None:
        self._started = started
        self._output = output

    @property
    def said(self) -> str:
        """What all processes have printed so far."""
        return self._output.read_text()

    def ranks(self) -> dict[int, psutil.Process]:
        """The living processes of the run by rank: not the agent, nor helpers of a rank."""
        return {number: rank for started in self._started for number, rank in processes.ranks(started).items()}

    def rank(self, number: int) -> psutil.Process:
        return self.ranks()[number]

    def wait_for(self, happened: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until ``happened()`` is true; fail if all processes have ended before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert any(process.poll() is None for process in self._started), self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def end(self, seconds: float = PATIENCE_SECONDS) -> tuple[list[int], str]:
        """Wait for the end of all; their exit statuses, and what they printed."""
        deadline = time.monotonic() + seconds
        try:
            statuses = [process.wait(max(0.0, deadline - time.monotonic())) for process in self._started]
        except psutil.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds} s:\n{self.said}") from None
        return statuses, self.said


@contextmanager
def torchrun(flags: Sequence[str], folder: Path, *agent_flags: str, script: Path = SCRIPT) -> Iterator[Launched]:
    """Two ranks under torchrun."""
    with _started([[*processes.torchrun(*agent_flags), str(script), *flags]], [{}], folder) as run:
        yield run


@contextmanager
def two_ranks(flags: Sequence[str], folder: Path, script: Path = SCRIPT) -> Iterator[Launched]:
    """Two ranks without a launcher, as ``srun`` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    with _started([[str(script), *flags]] * 2, ranks, folder) as run:
        yield run


@contextmanager
def _started(
    commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], folder: Path
) -> Iterator[Launched]:
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "output.txt"
    with output.open("w") as file:
        started = [
            processes.start(command, file, environment)
            for command, environment in zip(commands, environments, strict=True)
        ]
        try:
            yield Launched(started, output)
        finally:
            for process in started:
                processes.kill_all(process)
