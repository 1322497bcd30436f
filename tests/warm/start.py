"""A Python that has imported everything: its program, and the virtual environment that it is in.

    subprocess.run([warm_python(), SCRIPT, ...])          python SCRIPT ..., in milliseconds instead of seconds
    subprocess.run(["bash", ...], env={"VIRTUAL_ENV": warm_environment()})

    pytest ── server (imports torch, Megatron-Core, megatron.ltd) ──┬── a script, forked from the server
      │                                                             └── ...
      └── client, in place of python: hands over its words, folder, variables and streams, and ends as the script ends

Processes that a script starts with ``sys.executable`` are started in this way, too. What is not tested in this way is
that a new interpreter imports what the script needs: of each script one test starts a real Python (``NEW_PYTHON`` in
``tests/docs``). So do tests of signals that go to the processes of a launcher, as a script is no child of its client.
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support_processes import PATIENCE_SECONDS

_FOLDER = Path(__file__).resolve().parent


def warm_environment() -> str:
    """The folder of a virtual environment whose ``bin/python`` is a client. The first call starts the server."""
    return _started()[0]


def warm_python() -> str:
    """The client, to be started in place of ``sys.executable``."""
    return f"{warm_environment()}/bin/python"


def wait_for_scripts() -> None:
    """Wait until the server has no script: those of killed clients end soon after them."""
    server, deadline = psutil.Process(_started()[1]), time.monotonic() + PATIENCE_SECONDS
    while server.children():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@functools.cache
def _started() -> tuple[str, int]:
    """Folder of the virtual environment, and process id of the server."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    program, address = folder / "bin" / "python", folder / "server"
    program.parent.mkdir()
    client = [sys.executable, "-IS", str(_FOLDER / "client.py"), sys.executable, str(address)]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$0" "$@"\n')
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm.server", str(address)],
        cwd=_FOLDER.parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(_end, server, folder)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return str(folder), server.pid


def _end(server: subprocess.Popen[bytes], folder: Path) -> None:
    """End the server, which ends at the end of its input, as it does when this process is killed."""
    server.communicate()
    shutil.rmtree(folder, ignore_errors=True)
