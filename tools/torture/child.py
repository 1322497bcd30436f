"""A function in a forked child, with bounds on its time and memory, and how it ended."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_MOST_SAID_BYTES = 1 << 20
_DATA = 5
_CLOCK_SHARE = 6.0
_GRACE_SECONDS = 20.0
"""How long processes may take to end after the child that started them; only where they stay is it waited for."""


@dataclass(frozen=True)
class Bounds:
    """What a child may take. Its time is that of the processor, or a sixth of that of the clock if that is more.

    Where other programs use the processor too, a child that computes is slow, and one that waits is not.
    """

    patience_seconds: float = 20.0
    """After this time it is asked to end, with SIGTERM, as a scheduler would."""
    end_seconds: float = 20.0
    """After this further time it is killed."""
    more_bytes: int = 4 << 30
    """Memory that it cannot get more of, beyond what it starts with: allocations then fail."""


@dataclass(frozen=True)
class Ending:
    """How a child ended."""

    status: int
    """Its exit status; negative: the signal that ended it."""
    out: str
    said: str
    """Standard error."""
    seconds: float
    grown_bytes: int
    """The peak of its memory, beyond what it started with."""
    was_asked: bool
    """Whether it ran so long that it was asked to end."""
    was_killed: bool
    """Whether it did not do so, and was killed."""
    left: bool
    """Whether it left processes behind."""

    @property
    def last_line(self) -> str:
        lines = [line for line in self.said.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def __str__(self) -> str:
        return f"{self.status}: {self.last_line[:300]}" if self.last_line else str(self.status)


def in_child(function: Callable[[], object], folder: Path, bounds: Bounds | None = None) -> Ending:
    """Call ``function`` in a forked child in ``folder``, and wait for its end."""
    return Child(function, folder, bounds or Bounds()).wait()


class Child:
    """A forked child in its own session. It writes to the files ``out`` and ``said`` beside ``folder``."""

    def __init__(self, function: Callable[[], object], folder: Path, bounds: Bounds) -> None:
        self._bounds = bounds
        self._paths = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "said")]
        self._status: int | None = None
        self._peak_bytes = 0
        self._asked: float | None = None
        self._was_killed = False
        self._started = self._next_look = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process are idle
            self._first_bytes = mmap.mmap(-1, 8)  # shared: what the child has touched before the function
            self.pid = os.fork()
        if self.pid == 0:
            self._be_the_child(function, folder)

    def send(self, number: int) -> None:
        """Send a signal to it and to the processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def has_ended(self) -> bool:
        """Whether it has; if it takes too long, it is first asked to and then killed."""
        if self._status is not None:
            return True
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        now = time.monotonic()
        if pid:
            self._status = os.waitstatus_to_exitcode(status)
            self._peak_bytes = usage.ru_maxrss << 10
            self._seconds = now - self._started
        elif now > self._next_look:
            self._next_look = now + 0.1
            self._bound(max(_processor_seconds(self.pid), (now - self._started) / _CLOCK_SHARE))
        return self._status is not None

    def _bound(self, seconds: float) -> None:
        """Ask the child to end, or kill it, if it has taken too long."""
        if self._asked is None and seconds > self._bounds.patience_seconds:
            self._asked = seconds
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        elif self._asked is not None and seconds - self._asked > self._bounds.end_seconds:
            self._was_killed = True
            self.send(signal.SIGKILL)

    def wait(self) -> Ending:
        """How it ends. Processes that it leaves behind are killed."""
        while not self.has_ended():
            time.sleep(0.004)
        assert self._status is not None
        left = self._leaves_processes()
        self.send(signal.SIGKILL)
        out, said = map(_text, self._paths)
        grown_bytes = max(0, self._peak_bytes - int.from_bytes(self._first_bytes[:8], "little"))
        return Ending(
            self._status, out, said, self._seconds, grown_bytes,
            self._asked is not None, self._was_killed, left,
        )  # fmt: skip

    def _leaves_processes(self) -> bool:
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.02)
        return True

    def _be_the_child(self, function: Callable[[], object], folder: Path) -> NoReturn:
        status = 1
        try:
            os.setsid()
            folder.mkdir(parents=True, exist_ok=True)
            os.chdir(folder)
            for descriptor, path in zip((1, 2), self._paths, strict=True):
                target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(target, descriptor)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
            limit = _memory_bytes(_DATA) + self._bounds.more_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            self._first_bytes[:8] = _memory_bytes().to_bytes(8, "little")
            status = _status_of(function)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _status_of(function: Callable[[], object]) -> int:
    """The exit status that Python would end with."""
    try:
        function()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _memory_bytes(column: int = 1) -> int:
    """The memory of this process: what it has touched, or what counts for the limit (``_DATA``)."""
    pages = int(Path("/proc/self/statm").read_text().split()[column])
    return pages * resource.getpagesize()


def _processor_seconds(pid: int) -> float:
    """What a process has used so far, with those of its own that have ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _text(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return file.read(_MOST_SAID_BYTES).decode(errors="replace")
