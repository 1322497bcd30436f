"""Runs in a separate process, which tests send signals to and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import REPOSITORY
from tests.support_processes import PATIENCE_SECONDS

SCRIPT = REPOSITORY / "pretrain_gpt_ltd.py"


@contextmanager
def started(
    flags: Sequence[str], script: Path = SCRIPT, python: str = sys.executable
) -> Iterator[subprocess.Popen[str]]:
    """Start the command in its own process group, as a terminal would; kill the group at the end of the block."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [python, str(script), *flags],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """Wait until ``happened()`` is true; fail if ``process`` ends before."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def steps_logged(folder: Path) -> int:
    """The number of training steps in the log of a run; steps that were repeated after a restart count again."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.exists() else 0


def patched_script(folder: Path, patch: str) -> Path:
    """A script that executes the Python code ``patch`` and then runs ``pretrain_gpt_ltd.py``."""
    path = folder / "patched.py"
    path.write_text(
        "import os, runpy, sys, time\n"
        "from megatron.ltd.errors import quiet_torch\n"
        "from megatron.ltd.parallel.mesh import quiet_core_imports\n"
        f"quiet_torch()\nquiet_core_imports()\n{patch}\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    return path
