"""``python -m megatron.ltd.doctor``: all checks, one line each.

If another package hides ``megatron.ltd``, Python does not find the doctor by that name; run it by its path then:
``python megatron/ltd/doctor``. The first check, which looks for such packages, needs the standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.ltd.doctor.finding import Finding

_SOURCES = Path(__file__).resolve().parents[3]  # the folder that holds megatron/


def hiding_packages(path: Sequence[str]) -> list[Path]:
    """Every ``megatron/__init__.py`` on the module search path; each of them hides the namespace package."""
    found = [Path(folder or os.curdir) / "megatron" / "__init__.py" for folder in path]
    return [file for file in dict.fromkeys(found) if file.is_file()]


def findings() -> Iterator[Finding]:
    """All checks, cheapest first. Checks that need a broken package are skipped, with a note."""
    from megatron.ltd.doctor import hardware, layer, processes, software
    from megatron.ltd.doctor.finding import NOTE, WRONG, Finding
    from megatron.ltd.errors import quiet_torch

    quiet_torch()
    broken = []
    for finding in software.check():
        broken += [finding.name] if finding.state == WRONG else []
        yield finding
    if broken:
        advice = f"fix {', '.join(broken)} first"
        yield Finding(NOTE, "not checked", "devices, processes and the layer", advice)
        return
    yield from hardware.check()
    yield from processes.check()
    yield from layer.check()


def main() -> int:
    """Print the report. Exit status 0: everything works; 1: something is wrong."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != Path(__file__).resolve().parent]
    hiding = hiding_packages(sys.path)
    if hiding:
        files = ", ".join(map(str, hiding))
        print(
            f"wrong  namespace megatron  {files} hides megatron.core and megatron.ltd: take its folder off PYTHONPATH"
        )
        print("1 thing is wrong")
        return 1
    if str(_SOURCES) not in sys.path:
        sys.path.append(str(_SOURCES))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # the doctor is one process, also inside a job of a launcher
        os.environ.pop(name, None)
    from megatron.ltd.doctor.finding import report

    return report(findings())


def command(program: str | None = None) -> None:
    """``megatron-ltd doctor``; ``program`` is its name in messages. Exits with the status of ``main``."""
    about = "Check this machine: packages, devices, processes, and a layer. It takes no flags."
    parser, words = argparse.ArgumentParser(program, description=about), sys.argv[1:]
    if "-h" in words or "--help" in words:
        parser.print_help()
        raise SystemExit(0)
    if words:
        given = " ".join(" ".join(words).split())  # on one line
        parser.exit(2, f"{parser.prog}: error: {given}: the doctor takes no flags; leave this out\n")
    raise SystemExit(main())


if __name__ == "__main__":  # the processes that a check starts import this file
    command("python -m megatron.ltd.doctor")
