"""Who hears SIGTERM and Ctrl-C: processes that outlive what is said to everyone, and others that must not.

Schedulers send SIGTERM to every process of a job, and a terminal Ctrl-C to its whole foreground group. It is for the
training process to answer them: one of its helpers that died of such a signal would fail the save it asks for.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_TO_EVERYONE = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def starting_deaf_processes() -> Iterator[None]:
    """Processes and threads started in the block never hear SIGTERM and Ctrl-C; this one hears them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_EVERYONE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_signals() -> None:
    """SIGTERM and Ctrl-C end this process, also where it was started deaf to them, as under a launcher that is.

    For commands without an answer of their own. The processes that they fork can be ended then too: a pool of
    ``multiprocessing`` waits for ever for a worker that is deaf.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
