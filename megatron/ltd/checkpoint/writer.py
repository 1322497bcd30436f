"""A process that writes this rank's files of a checkpoint, while training may go on in its parent.

    training  ──fork──  tensors change in place ........... is_done?  outcome
                 └────  tensors as they were at the fork -> files -> outcome down a pipe

The fork is the snapshot: the writer sees memory as it was, and whatever training changes later is copied by the kernel
first. A started afresh or long-lived helper would share the tensors instead, and write a mixture of steps.

What is written, and where, is the caller's (``save``).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from megatron.ltd.parallel.signals import starting_deaf_processes

_PARENT_CHECK_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What ``write`` returned, or why it failed."""

    value: Any = None
    failure: str | None = None


class Writer:
    """Runs ``write()`` in a forked process and hands over what it returns.

    The process is deaf to SIGTERM and Ctrl-C, which schedulers and terminals send to everyone, and ends soon after its
    parent. ``write`` must leave CUDA and the process groups alone.
    """

    def __init__(self, write: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._receiving, sending = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(write, sending, os.getpid()), daemon=True)
        with starting_deaf_processes(), warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads: the writer takes no lock that another thread could hold.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            try:
                self._process.start()
            except OSError as error:  # no memory or no room for another process
                sending.send(Outcome(failure=first_line(error)))
        sending.close()

    def wait(self, seconds: float) -> bool:
        """Whether the writer is done, after at most ``seconds``."""
        return self._receiving.poll(seconds)

    def outcome(self) -> Outcome:
        """What came of it; waits for the end."""
        try:
            outcome = self._receiving.recv()
        except EOFError:
            self._process.join()
            outcome = Outcome(failure=f"its writing process ended with status {self._process.exitcode}")
        self._close()
        return outcome

    def kill(self) -> None:
        """End the process where it is."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        if self._process.pid is not None:
            self._process.join()
        self._receiving.close()


def _run(write: Callable[[], Any], sending: Connection, parent: int) -> None:
    """The writer's life."""
    gc.disable()  # it would free tensors of a GPU that this process must not talk to
    torch.set_num_threads(1)  # the parent's other threads do not exist here
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        outcome = Outcome(write())
    except Exception as error:
        outcome = Outcome(failure=first_line(error))
    with suppress(BrokenPipeError):  # the parent may have ended
        sending.send(outcome)


def _end_with(parent: int) -> None:
    """End this process soon after ``parent``, however that ended."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
