"""Shared parts of measurements: checks of flags, circumstances, and output."""

from __future__ import annotations

import importlib.util
import json
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.versions import circumstances

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What ``--clock`` can be"""


def check_installed(*packages: str) -> None:
    """Raise ``UserError`` if a package that is needed at the end of a measurement is missing at its start."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            name = {"sklearn": "scikit-learn"}.get(package, package.replace("_", "-"))
            raise UserError(f"the package {name} is not installed: pip install {name}, or bash tools/setup_env.sh dev")


def check_clock(clock: str, threads: int | None, device: str) -> None:
    """Raise ``UserError`` if CPU time would include more than the measured work."""
    if clock == "cpu" and (threads != 1 or device != "cpu"):
        raise UserError(
            "--clock cpu: CPU time counts threads that wait, and no GPU; add --threads 1 --device cpu, or use "
            "--clock wall"
        )


@dataclass
class Took:
    """Seconds of some work."""

    wall: float = 0.0
    cpu: float = 0.0


def children_cpu_seconds() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_python(words: Sequence[str], **options: Any) -> tuple[subprocess.CompletedProcess[str], Took]:
    """Run ``python WORDS`` in a process of its own: how it ended, and what it and its children took."""
    cpu, wall = children_cpu_seconds(), time.perf_counter()
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, **options)
    return ended, Took(time.perf_counter() - wall, children_cpu_seconds() - cpu)


def about(script: str, *packages: str, without: str | None = None, **facts: str) -> dict[str, str]:
    """The command, machine, versions, date and load of a measurement; ``facts`` add to these or replace them.

    ``without`` is a flag that is removed from the command, with its value.
    """
    words = list(sys.argv[1:])
    if without in words:
        place = words.index(without)
        del words[place : place + 2]
    command = shlex.join(["python", f"tools/benchmark/{script}", *words])
    return {"command": f"`{command}`", **circumstances(*packages), **facts}


def facts(named: Mapping[str, str]) -> str:
    """Named facts as a list in Markdown."""
    return "\n".join(f"- {name}: {fact}" for name, fact in named.items())


def write_json(path: Path, content: Any) -> None:
    """Write the record of a measurement."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
