"""The processes of a run under torchrun: starting the run, finding its ranks, and killing it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "pretrain_gpt_ltd.py"


def torchrun(*agent_flags: str) -> list[str]:
    """Arguments that launch two ranks on this machine; a script and its flags follow."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *agent_flags]


def start(
    command: Sequence[str], output: IO[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> psutil.Popen:
    """Start Python with ``command`` in its own session, in ``folder``; all of its output goes to ``output``."""
    shared = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return psutil.Popen(
        [sys.executable, *command], env=os.environ | shared | (environment or {}), stdout=output,
        stderr=subprocess.STDOUT, start_new_session=True, cwd=folder,
    )  # fmt: skip


def ranks(started: psutil.Popen) -> dict[int, psutil.Process]:
    """The living ranks of a run by number: ``started`` or its children, but not the processes that ranks start."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for process in [started] if "RANK" in started.environ() else started.children():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                rank = process.environ().get("RANK")
                if rank is not None and process.status() != psutil.STATUS_ZOMBIE:
                    found[int(rank)] = process
    return found


def kill_all(started: psutil.Popen) -> None:
    """Kill a run: the launcher, the ranks, and all their descendants."""
    with suppress(psutil.NoSuchProcess):
        below = started.children(recursive=True)
        started.kill()
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    started.wait()
