"""Jobs of several processes, one a rank, each forked from a process that has imported everything.

    pool.run(function, *arguments, world_size=4)  ->  [what rank 0 returned, ..., what rank 3 returned]

    pytest ── forkserver (imports torch, Megatron-Core, megatron.ltd) ──┬── rank 0
      │                                                                 ├── rank 1
      └── a rendezvous store for each job, as torchrun's agent has      └── ...

Every job has processes of its own, in the environment that torchrun would give it: process groups of former jobs, whose
threads outlive them, cannot disturb it. If a rank fails, dies or takes too long, the others are ended, and the error
holds the traceback, stack or output of each. Ranks end with the process that started them, however it ends, and with
them what they started.

A job on the CPU puts stand-ins in place of ``torch.cuda``; a pool computes on one kind of device. Not here: what the
jobs do (``jobs``).
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.support_processes import PATIENCE_SECONDS

_PRELOAD = [
    "torch",
    "tests.distributed.jobs",
    "megatron.ltd.workloads.gpt",
    "megatron.ltd.workloads.bert",
    "megatron.ltd.parallel.cpu_backend",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
]
_REPOSITORY = Path(__file__).resolve().parents[2]
_SECONDS_FOR_THE_OTHERS = 10.0
_SECONDS_FOR_A_STACK = 1.0
_LONGEST_OUTPUT = 4000


class JobFailed(Exception):
    """A job did not return on every rank; the message says what each of them did instead."""


@dataclass(frozen=True)
class _Worker:
    """The process of a rank, as the parent sees it."""

    process: ForkServerProcess
    connection: Connection
    output: Path

    def job_output(self) -> str:
        """What it has written, stacks included."""
        text = self.output.read_bytes().decode(errors="replace")
        return text if len(text) <= _LONGEST_OUTPUT else f"...{text[-_LONGEST_OUTPUT:]}"

    def end(self) -> None:
        """Kill it, with what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # should it not lead its group yet
        self.process.join()
        self.connection.close()


@dataclass(frozen=True)
class _Outcome:
    """What one rank's job came to: its value, or the traceback of what it raised."""

    value: Any = None
    error: str | None = None


class Pool:
    """Jobs on one kind of device, ``"cpu"`` or ``"cuda"``. Close it, or use it as a context."""

    def __init__(self, device: str = "cpu") -> None:
        assert device in ("cpu", "cuda")
        self._device = device
        self._folder = Path(tempfile.mkdtemp(prefix="pool-"))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self, function: Callable[..., Any], *arguments: Any, world_size: int, seconds: float = PATIENCE_SECONDS
    ) -> list[Any]:
        """Call an importable ``function(*arguments)`` on ``world_size`` ranks; what each returned, in rank order.

        Raises ``JobFailed`` where a rank raises, dies, or has not returned after ``seconds``.
        """
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks: list[_Worker] = []
        try:
            for rank in range(world_size):
                ranks.append(self._start(rank))
                request = (_environment(rank, world_size, store.port), function, arguments)
                with contextlib.suppress(BrokenPipeError):  # a dead rank is found below
                    ranks[rank].connection.send_bytes(pickle.dumps(request))
            outcomes = _collect(ranks, seconds)
            if any(outcome is None or outcome.error is not None for outcome in outcomes):
                raise JobFailed(_explain(function.__name__, ranks, outcomes, seconds))
        finally:
            for worker in ranks:
                worker.end()
        return [outcome.value for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """Remove what the jobs have written; a second call does nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, rank: int) -> _Worker:
        here, there = multiprocessing.Pipe()
        output = self._folder / f"rank-{rank}.txt"
        output.write_bytes(b"")
        with _importable():
            # Not a daemon: a job may start processes of its own, which a daemon may not.
            process = self._context.Process(target=_serve, args=(there, output, self._device), daemon=False)
            process.start()
        there.close()
        return _Worker(process, here, output)


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun sets where its agent holds the rendezvous store."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Let the fork server, which is a fresh Python, import ``tests`` wherever pytest was started."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_REPOSITORY), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _collect(ranks: list[_Worker], seconds: float) -> list[_Outcome | None]:
    """Each rank's outcome, or None where there is none in time; after one failure the others get a few seconds."""
    outcomes: list[_Outcome | None] = [None] * len(ranks)
    waiting = {worker.connection: rank for rank, worker in enumerate(ranks)}
    deadline = time.monotonic() + seconds
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = waiting.pop(connection)
            try:
                outcome = pickle.loads(connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                ranks[rank].process.join(_SECONDS_FOR_THE_OTHERS)
                outcome = _Outcome(error=f"died with exit code {ranks[rank].process.exitcode}")
            outcomes[rank] = outcome
            if outcome.error is not None:
                deadline = min(deadline, time.monotonic() + _SECONDS_FOR_THE_OTHERS)
    return outcomes


def _explain(name: str, ranks: list[_Worker], outcomes: list[_Outcome | None], seconds: float) -> str:
    """What every rank of a failed job did, with the stacks of those that are still in it."""
    for worker, outcome in zip(ranks, outcomes, strict=True):
        if outcome is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, signal.SIGUSR1)  # faulthandler writes every thread's stack
    if None in outcomes:
        time.sleep(_SECONDS_FOR_A_STACK)
    parts = [f"{name} failed on {len(ranks)} ranks; limit {seconds:g} s"]
    for rank, (worker, outcome) in enumerate(zip(ranks, outcomes, strict=True)):
        if outcome is None:
            parts.append(f"--- rank {rank} did not return; its output and stacks:\n{worker.job_output()}")
        elif outcome.error is None:
            parts.append(f"--- rank {rank} returned")
        else:
            parts.append(f"--- rank {rank}: {outcome.error}\noutput:\n{worker.job_output()}")
    return "\n".join(parts)


def _serve(connection: Connection, output: Path, device: str) -> None:
    """The life of a rank: one job."""
    os.setsid()  # what it starts is in its group, and ends with it
    threading.Thread(target=_leave_with_parent, args=(output.parent,), daemon=True).start()
    writer = os.open(output, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True)
    tempfile.tempdir = str(output.parent)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        environment, function, arguments = pickle.loads(connection.recv_bytes())
        os.environ.update(environment)
        answer = pickle.dumps(_Outcome(function(*arguments)))
    except BaseException:  # a job may end in SystemExit, and the parent must hear of it
        answer = pickle.dumps(_Outcome(error=traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send_bytes(answer)
    with contextlib.suppress(EOFError):
        connection.recv_bytes()  # stays until the parent has every rank's answer, and ends this process


def _leave_with_parent(folder: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    _leave(folder)


def _leave(folder: Path) -> None:
    """End this rank, which has no parent any more, and what it started."""
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
