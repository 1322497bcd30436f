"""A thread that writes this rank's files of a checkpoint, while training waits or continues.

    training  ──start──  next steps ........... is it done?  outcome
                 └─────  tensors -> files ────────────┘

A thread, not a forked process: a fork copies locks that other threads of the process hold, such as those of the process
groups, and a child that needs one of them waits forever. Files are written without holding Python's global lock.

The caller (``save``) decides what is written and where, and passes tensors that training does not change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron.ltd.errors import first_line
from megatron.ltd.parallel.signals import signals_blocked


@dataclass(frozen=True)
class Outcome:
    """What ``write`` returned, or why it failed."""

    value: Any = None
    failure: str | None = None


class Abandoned(Exception):
    """The files being written are no longer needed."""


class Writer:
    """Runs ``write(check)`` in a thread and keeps its return value.

    ``write`` calls ``check()`` between its parts, which raises ``Abandoned`` after ``abandon``; it must not use CUDA or
    process groups. The process does not exit before the thread has ended.
    """

    def __init__(self, write: Callable[[Callable[[], None]], Any]) -> None:
        self._write = write
        self._outcome = Outcome()
        self._done, self._abandoned = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._run, name="checkpoint writer")
        try:
            with signals_blocked():
                thread.start()
        except RuntimeError:  # no more threads are allowed
            self._run()

    def wait(self, seconds: float) -> bool:
        """Whether the writer is done, after at most ``seconds``."""
        return self._done.wait(seconds)

    def outcome(self) -> Outcome:
        """The outcome, once the writer is done."""
        self._done.wait()
        return self._outcome

    def abandon(self) -> None:
        """Stop ``write`` at its next check, and wait for that."""
        self._abandoned.set()
        self._done.wait()

    def _run(self) -> None:
        try:
            self._outcome = Outcome(self._write(self._check))
        except BaseException as error:  # of any kind: the waiting ranks need an answer
            self._outcome = Outcome(failure=first_line(error))
        finally:
            self._done.set()

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise Abandoned
