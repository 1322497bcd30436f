"""Runs jobs on several processes, one per rank, each forked from a process that has already imported everything.

    pool.run(function, *arguments, world_size=4)  ->  [what rank 0 returned, ..., what rank 3 returned]

    pytest ── forkserver (imports torch, Megatron-Core, megatron.ltd) ──┬── rank 0
      │                                                                 ├── rank 1
      └── a rendezvous store for each job, as torchrun's agent has      └── ...

Every job gets new processes, in the environment that torchrun would set, so that the process groups of earlier jobs,
whose threads outlive them, cannot disturb it. If a rank fails, dies or takes too long, the others are killed, and the
error contains the traceback, stack or output of each. If the process that started the ranks ends in any way, the ranks
and the processes that they started end too.

A job on the CPU replaces parts of ``torch.cuda``, so a pool computes on one kind of device. The jobs themselves are in
``jobs``.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
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
    """A job did not return on every rank; the message says what each rank did instead."""


@dataclass(frozen=True)
class _Worker:
    """The process of a rank, as the parent sees it."""

    process: ForkServerProcess
    connection: Connection
    output: Path

    def job_output(self) -> str:
        """The end of what the process has written, stacks included."""
        text = self.output.read_bytes().decode(errors="replace")
        return text if len(text) <= _LONGEST_OUTPUT else f"...{text[-_LONGEST_OUTPUT:]}"

    def end(self) -> None:
        """Kill the process and the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()  # in case it does not lead a process group yet
        self.process.join()
        self.connection.close()


@dataclass(frozen=True)
class _Outcome:
    """The result of one rank's job: its return value, or the traceback of its exception."""

    value: Any = None
    error: str | None = None


class Pool:
    """Runs jobs on one kind of device, ``"cpu"`` or ``"cuda"``. Use it as a context manager, or close it."""

    def __init__(self, device: str = "cpu", also_import: Sequence[str] = ()) -> None:
        """``also_import``: modules that many jobs need, imported once if this is the first pool of its process."""
        assert device in ("cpu", "cuda")
        self._device = device
        self._folder = Path(tempfile.mkdtemp(prefix="pool-"))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOAD, *also_import])

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self, function: Callable[..., Any], *arguments: Any, world_size: int, seconds: float = PATIENCE_SECONDS
    ) -> list[Any]:
        """Call an importable ``function(*arguments)`` on ``world_size`` ranks; return the results in rank order.

        Raises ``JobFailed`` if a rank raises, dies, or has not returned after ``seconds``.
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
        """Remove the files that jobs have written; a second call has no effect."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, rank: int) -> _Worker:
        here, there = multiprocessing.Pipe()
        output = self._folder / f"rank-{rank}.txt"
        output.write_bytes(b"")
        with _importable():
            # Not a daemon: jobs may start processes, and daemonic processes may not have children.
            process = self._context.Process(target=_serve, args=(there, output, self._device), daemon=False)
            process.start()
        there.close()
        return _Worker(process, here, output)


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets when its agent holds the rendezvous store.

    What is compared in fp32 is multiplied in fp32, without TF32; see ``tests/gpu/conftest.py``.
    """
    return {
        "NVIDIA_TF32_OVERRIDE": "0",
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
    """Let the fork server, a new Python process, import ``tests`` from whatever folder pytest was started in."""
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
    """Each rank's outcome, or None if there is none in time; after one failure the others get a few more seconds."""
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
    """The error message of a failed job: what every rank did, with the stacks of those that are still running."""
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
    """The main function of a rank: receive one job, run it and send the outcome."""
    os.setsid()  # processes that the job starts join this group, and are killed with it
    threading.Thread(target=_leave_with_parent, args=(output.parent,), daemon=True).start()
    writer = os.open(output, os.O_WRONLY | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    faulthandler.enable(file=sys.__stderr__)
    torch._C._set_print_stack_traces_on_fatal_signal(True)  # of C++, which Python's handler does not know
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True)
    tempfile.tempdir = str(output.parent)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.compiler.set_stance("force_eager")  # as if Megatron-Core were imported after ``cpu_backend.install``
    try:
        environment, function, arguments = pickle.loads(connection.recv_bytes())
        os.environ.update(environment)
        answer = pickle.dumps(_Outcome(function(*arguments)))
    except BaseException:  # a job may raise SystemExit, which the parent must receive too
        answer = pickle.dumps(_Outcome(error=traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send_bytes(answer)
    with contextlib.suppress(EOFError):
        connection.recv_bytes()  # waits until the parent has every rank's answer and kills this process


def _leave_with_parent(folder: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    _leave(folder)


def _leave(folder: Path) -> None:
    """Kill this rank, whose parent has ended, and the processes that it started."""
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
