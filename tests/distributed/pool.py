"""A pool of worker processes, one a rank: started once, forked from a process that has imported everything.

    pool.run(function, *arguments, world_size=4)  ->  [what rank 0 returned, ..., what rank 3 returned]

    pytest ── forkserver (imports torch, Megatron-Core, megatron.ltd) ──┬── rank 0
      │                                                                 ├── rank 1     ranks below world_size compute,
      └── a rendezvous store for each job, as torchrun's agent has      └── ...        the others wait for another job

A job sees the environment that torchrun would give it. A job that fails, dies or takes
too long ends every worker, and the error holds the traceback, stack or output of each rank; the next job starts fresh
ones. Workers leave with the process that started them, however it ends, and take what they started along.

A run on the CPU puts stand-ins in place of ``torch.cuda`` for the rest of its process, so that a pool computes on one
kind of device only. Not here: what the jobs do (``jobs``).
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
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

import psutil
import torch.distributed as dist

from tests.support_processes import PATIENCE_SECONDS

_PRELOAD = ["torch", "tests.distributed.jobs"]
_REPOSITORY = Path(__file__).resolve().parents[2]
_SECONDS_FOR_THE_OTHERS = 10.0
_SECONDS_FOR_A_STACK = 1.0
_LONGEST_OUTPUT = 4000
_MOST_THREADS = 100
"""Of a worker between two jobs. A run with the distributed optimizer leaves some 45 behind that go on polling its
process groups, and soon keep the machine busy: then fresh workers take over."""


class JobFailed(Exception):
    """A job did not return on every rank; the message says what each of them did instead."""


@dataclass
class _Worker:
    """One process of the pool, as the parent sees it."""

    process: ForkServerProcess
    connection: Connection
    output: Path
    output_before_job: int = 0

    def job_output(self) -> str:
        """What this worker has written since its job began, stacks included."""
        text = self.output.read_bytes()[self.output_before_job :].decode(errors="replace")
        return text if len(text) <= _LONGEST_OUTPUT else f"...{text[-_LONGEST_OUTPUT:]}"


@dataclass(frozen=True)
class _Outcome:
    """What one rank's job came to: its value, or the traceback of what it raised."""

    value: Any = None
    error: str | None = None


class Pool:
    """Workers of one kind of device, ``"cpu"`` or ``"cuda"``. Close it, or use it as a context."""

    def __init__(self, device: str = "cpu") -> None:
        assert device in ("cpu", "cuda")
        self._device = device
        self._folder = Path(tempfile.mkdtemp(prefix="pool-"))
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOAD)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that wait for a job."""
        return [worker.process.pid or 0 for worker in self._workers]

    def run(
        self, function: Callable[..., Any], *arguments: Any, world_size: int, seconds: float = PATIENCE_SECONDS
    ) -> list[Any]:
        """Call an importable ``function(*arguments)`` on ``world_size`` ranks; what each returned, in rank order.

        Raises ``JobFailed`` where a rank raises, dies, or has not returned after ``seconds``.
        """
        if any(psutil.Process(worker.process.pid).num_threads() > _MOST_THREADS for worker in self._workers):
            self._stop()
        self._start(world_size)
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = self._workers[:world_size]
        for rank, worker in enumerate(ranks):
            worker.output_before_job = worker.output.stat().st_size
            request = (_environment(rank, world_size, store.port), function, arguments)
            with contextlib.suppress(BrokenPipeError):  # a dead worker is found below
                worker.connection.send_bytes(pickle.dumps(request))
        outcomes = _collect(ranks, seconds)
        if any(outcome is None or outcome.error is not None for outcome in outcomes):
            message = _explain(function.__name__, ranks, outcomes, seconds)
            self._stop()
            raise JobFailed(message)
        return [outcome.value for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        """End every worker; a second call does nothing."""
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, world_size: int) -> None:
        with _importable():
            while len(self._workers) < world_size:
                here, there = multiprocessing.Pipe()
                output = self._folder / f"rank-{len(self._workers)}.txt"
                output.touch()
                # Not a daemon: a save starts processes of its own, which a daemon may not.
                process = self._context.Process(target=_serve, args=(there, output, self._device), daemon=False)
                process.start()
                there.close()
                self._workers.append(_Worker(process, here, output))

    def _stop(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid or 0, signal.SIGKILL)
            worker.process.kill()  # should it not lead its group yet
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []


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
    """A worker's life: one job after another until the parent is gone."""
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
    gc.freeze()  # what was imported before the fork stays: a collection need not look at it
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            _leave(output.parent)
        try:
            environment, function, arguments = pickle.loads(request)
            os.environ.update(environment)
            answer = pickle.dumps(_Outcome(function(*arguments)))
        except BaseException:  # a job may end in SystemExit, and the parent must hear of it
            answer = pickle.dumps(_Outcome(error=traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send_bytes(answer)
        del request, answer
        gc.collect()  # most runs leave their process groups in cycles, and each has threads


def _leave_with_parent(folder: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    _leave(folder)


def _leave(folder: Path) -> None:
    """End this worker, which has no parent any more, and what it started."""
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
