"""Processes that are started with SIGTERM and Ctrl-C ignored, as by examples/launch/torchrun.sh, can undo it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support_processes import PATIENCE_SECONDS

PROGRAM = """
import signal, sys, time
from megatron.ltd.parallel.signals import stop_ignoring_signals
if "stop" in sys.argv:
    stop_ignoring_signals()
signal.raise_signal(int(sys.argv[1]))
print("still here")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_ignoring_signals(number: signal.Signals, repository: object) -> None:
    for words, status, said in (([], 0, "still here\n"), (["stop"], -number, "")):
        program = [sys.executable, "-c", PROGRAM, str(int(number)), *words]
        ended = subprocess.run(
            ["bash", "-c", 'trap "" TERM INT; exec "$@"', "bash", *program],
            cwd=str(repository), capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout) == (status, said), ended.stderr
