"""From results to a table, Markdown and JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron.ltd.versions import cpu_model

from .config import SoakConfig
from .drive import Result

_PACKAGES = ("torch", "megatron-core")


def to_json(config: SoakConfig, result: Result, command: str) -> dict[str, Any]:
    """Everything: flags, circumstances, result."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)]
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu_model()}, {os.cpu_count()} cores; load average {os.getloadavg()[0]:.1f}, this test included",
        "versions": ", ".join(versions),
        "config": asdict(config),
        "result": asdict(result),
    }


def lines_of(result: Mapping[str, Any]) -> dict[str, str]:
    """A result as rows of a table."""
    kills = result["kills"]
    what, moments = (Counter(kill[name] for kill in kills) for name in ("what", "moment"))
    lost_seconds = result["seconds"] - result["straight_seconds"]
    return {
        "kills": f"{len(kills)} ({', '.join(f'{count} of {name}' for name, count in sorted(what.items()))})",
        "inside a save": str(moments["saving"]),
        "between saves": str(moments["training"]),
        "while starting": str(moments["starting"]),
        "continued from a checkpoint": f"{result['resumes']} times",
        "steps": f"{result['num_steps']}, and {result['repeated_steps']} computed again",
        "seconds": f"{result['seconds']:.0f}; left alone {result['straight_seconds']:.0f}",
        "seconds lost a kill": f"{lost_seconds / len(kills):.1f}",
        "longest from a kill to the next step": f"{result['longest_restart_seconds']:.1f} s",
        "log of every step equal": _yes(result["equal_steps"]),
        "final weights and optimizer state bit-equal": _yes(result["equal_weights"]),
        "processes left behind": str(result["processes_left"]),
    }


def write(prefix: str, mode: str, entry: Mapping[str, Any]) -> None:
    """Put a result beside those of other kinds of save that stand in ``prefix``.json, and write both files anew."""
    path = Path(f"{prefix}.json")
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[mode] = dict(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    Path(f"{prefix}.md").write_text(to_markdown(entries), encoding="utf-8")


def to_markdown(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """A column for each kind of save, and the circumstances of each."""
    columns = {mode: lines_of(entry["result"]) for mode, entry in sorted(entries.items(), reverse=True)}
    rows = list(next(iter(columns.values())))
    table = [["", *(f"{mode} save" for mode in columns)], ["---"] * (len(columns) + 1)]
    table += [[row, *(column[row] for column in columns.values())] for row in rows]
    about = [
        f"- {mode}: `{entry['command']}`, {entry['date']}; {entry['machine']}; {entry['versions']}."
        for mode, entry in sorted(entries.items(), reverse=True)
    ]
    return "\n".join(
        [
            "# Soak: a run that is killed again and again",
            "",
            "Two data-parallel processes with the distributed optimizer, under torchrun, are killed (SIGKILL) at",
            "random moments and go on from the last checkpoint. The same run, left alone, must end alike.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in table),
            "",
            *about,
            "",
        ]
    )


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
