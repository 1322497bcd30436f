"""The process that writes: what it sees, what comes back, and what it takes to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from megatron.ltd.checkpoint.writer import Outcome, Writer, first_line


def test_it_sees_memory_as_it_was(tmp_path: Path) -> None:
    """Both ways: what it reads later, and what it changes itself."""
    weights, go = torch.zeros(4), tmp_path / "go"

    def write() -> list[float]:
        while not go.exists():
            time.sleep(0.01)
        weights.add_(1.0)
        return weights.tolist()

    writer = Writer(write)
    weights.add_(10.0)
    assert not writer.wait(0.05)
    go.touch()
    assert writer.wait(20.0)
    assert writer.outcome() == Outcome([1.0] * 4)
    assert weights.tolist() == [10.0] * 4


def _fail() -> None:
    raise OSError(28, "No space left on device")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("write", "failure"),
    [
        (_fail, "[Errno 28] No space left on device"),
        (_die, "its writing process ended with status -9"),
    ],
)
def test_what_goes_wrong_comes_back(write: object, failure: str) -> None:
    writer = Writer(write)  # type: ignore[arg-type]
    assert writer.wait(20.0)
    assert writer.outcome() == Outcome(failure=failure)


def test_no_process_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        writer = Writer(lambda: None)
    assert writer.wait(0.0)
    assert writer.outcome() == Outcome(failure="[Errno 12] Cannot allocate memory")


def test_much_comes_back() -> None:
    """More than a pipe holds."""
    assert Writer(lambda: bytes(1 << 22)).outcome().value == bytes(1 << 22)


def test_it_is_deaf_but_mortal(tmp_path: Path) -> None:
    def write() -> str:
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(1.0)
        return "written"

    def pid() -> int:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
        return int((tmp_path / "pid").read_text())

    writer = Writer(write)
    os.kill(pid(), signal.SIGTERM)
    os.kill(pid(), signal.SIGINT)
    assert writer.outcome().value == "written"
    assert not psutil.pid_exists(pid())

    (tmp_path / "pid").unlink()
    killed = Writer(write)
    last = pid()
    killed.kill()
    assert not psutil.pid_exists(last)


_PARENT = """
import sys, time
from megatron.ltd.checkpoint.writer import Writer
writer = Writer(lambda: time.sleep(60))
print(writer._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_it_ends_with_its_parent(repository: Path) -> None:
    command = [sys.executable, "-c", _PARENT]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        writer = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        writer.wait(20.0)


def test_one_line_of_an_error() -> None:
    assert first_line(RuntimeError("\n  disk full \nTraceback:\n...")) == "disk full"
    assert first_line(MemoryError()) == "MemoryError"
