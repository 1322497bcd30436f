"""SIGTERM and Ctrl-C: helper processes that are not interrupted by them, and commands that always are.

A scheduler sends SIGTERM to every process of a job, and a terminal sends Ctrl-C to its whole foreground group. Only the
training process answers them: if they ended one of its helpers, the save that this helper writes would fail.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block SIGTERM and Ctrl-C for the processes and threads started in the block; the caller gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_ignoring_signals() -> None:
    """Restore the default actions of SIGTERM and Ctrl-C if a launcher started this process with them ignored.

    For commands without signal handlers of their own. Their child processes can then be ended too; otherwise a
    ``multiprocessing`` pool would wait forever for a worker that ignores its SIGTERM.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
