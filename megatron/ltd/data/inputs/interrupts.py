"""Ctrl-C while a process is started."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C while a process may be started.

    The new process inherits the signal mask: only the parent handles Ctrl-C, and it ends its workers. The mask applies
    to this thread only, and another thread may receive the signal, so that the handler is delayed too: interrupted in
    the middle, the parent would leave a worker without the rest of its arguments.
    """
    arrived: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
