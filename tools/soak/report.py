"""The result of the soak test as a table, in Markdown and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron.ltd.format import markdown_table
from megatron.ltd.versions import circumstances

from .config import SoakConfig
from .drive import Result

_TITLE = """# Soak: a run that is killed again and again

Two data-parallel processes with the distributed optimizer, under torchrun, are killed (SIGKILL) at
random moments and go on from the last checkpoint. The same run, left alone, must end alike.
"""


def to_json(config: SoakConfig, result: Result, command: str) -> dict[str, Any]:
    """The flags, circumstances and result of a soak test."""
    return {
        "command": command,
        **circumstances("torch", "megatron-core"),
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
    """Add a result to that of the other kind of save in ``prefix``.json, and write both files."""
    path = Path(f"{prefix}.json")
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entries[mode] = dict(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    Path(f"{prefix}.md").write_text(to_markdown(entries), encoding="utf-8")


def to_markdown(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with one column per kind of save, and the circumstances of each."""
    columns = {mode: lines_of(entry["result"]) for mode, entry in sorted(entries.items(), reverse=True)}
    rows = [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    header = ["", *(f"{mode} save" for mode in columns)]
    about = [
        f"- {mode}: `{entry['command']}`, {entry['date']}; {entry['machine']}; {entry['versions']}."
        for mode, entry in sorted(entries.items(), reverse=True)
    ]
    return "\n".join([_TITLE, markdown_table(rows, header, num_labels=len(header)), "", *about, ""])


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"
