"""Child processes of tests: how long a test waits for them, and how they are killed when it ends.

with child(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil

PATIENCE_SECONDS = 900.0
"""Timeout in seconds for events that always happen eventually. Only a failing test waits this long."""


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a child process in its own session, and kill it with all its descendants at the end of the block."""
    with subprocess.Popen(command, **{"text": True, "start_new_session": True, **options}) as process:
        try:
            yield process
        finally:
            descendants: list[psutil.Process] = []
            with suppress(psutil.NoSuchProcess):
                descendants = psutil.Process(process.pid).children(recursive=True)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for descendant in descendants:
                with suppress(psutil.NoSuchProcess):
                    descendant.kill()
