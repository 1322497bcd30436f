"""The thread that writes a checkpoint: its outcome, how it is abandoned, and the signals that it blocks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from megatron.ltd.checkpoint.writer import Outcome, Writer
from megatron.ltd.errors import first_line

Check = Callable[[], None]


def test_training_continues_while_the_writer_works() -> None:
    go = threading.Event()

    def write(check: Check) -> list[int]:
        go.wait(20.0)
        return [1, 2]

    writer = Writer(write)
    assert not writer.wait(0.05)
    go.set()
    assert writer.outcome() == Outcome([1, 2])
    assert writer.wait(0.0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit("left"), MemoryError()])
def test_an_error_becomes_the_outcome(error: BaseException) -> None:
    def fail(check: Check) -> None:
        raise error

    assert Writer(fail).outcome() == Outcome(failure=first_line(error))


def test_without_a_thread_it_writes_synchronously(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        writer = Writer(lambda check: 7)
    assert writer.wait(0.0)
    assert writer.outcome() == Outcome(7)


def test_a_writer_can_be_abandoned() -> None:
    written = []

    def write(check: Check) -> None:
        while True:
            check()
            written.append(1)
            time.sleep(0.01)

    writer = Writer(write)
    writer.abandon()
    pieces = len(written)
    assert writer.outcome() == Outcome(failure="Abandoned")
    time.sleep(0.1)
    assert len(written) == pieces


def test_signals_reach_the_training_thread() -> None:
    """The writer blocks SIGTERM and SIGINT, because a signal delivered to it would not wake the training loop."""
    blocked = Writer(lambda check: signal.pthread_sigmask(signal.SIG_BLOCK, ())).outcome().value
    assert {signal.SIGTERM, signal.SIGINT} <= blocked
    assert not {signal.SIGTERM, signal.SIGINT} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
