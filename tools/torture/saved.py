"""The folder in which a chain of runs saves: its log, its checkpoints, and whether two such folders end alike."""

from __future__ import annotations

import filecmp
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint import files as checkpoint_files
from megatron.ltd.training.stopwatch import TIMINGS


class Saved:
    """What is in ``folder`` while runs write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def num_steps(self) -> int:
        """The number of steps in the log, including those that were computed again."""
        return self._log_text().count('"kind": "train"')

    def unfinished(self) -> set[tuple[str, int]]:
        """Unfinished checkpoints: their names and inodes, since one may be begun again."""
        found = set()
        for path in self.folder.glob("iter_*.partial*"):
            with suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_ino))
        return found

    def moment_since(self, num_steps: int, unfinished: set[tuple[str, int]]) -> str:
        """What a run was doing when it ended, if these were there before it was started."""
        if not self.unfinished() <= unfinished:
            return "inside a save"
        return "between saves" if self.num_steps() > num_steps else "while starting"

    def timeless_log(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The records of all steps and evaluations without timings; a later record replaces an earlier one."""
        lines = [json.loads(text) for text in self._log_text().splitlines()]
        return {
            (line["kind"], line["iteration"]): {name: value for name, value in line.items() if name not in TIMINGS}
            for line in lines
            if line["kind"] != "run"
        }

    def _log_text(self) -> str:
        """The complete lines of the log."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text[: text.rfind("\n") + 1]


def difference(one: Saved, other: Saved, iteration: int) -> str:
    """What differs between the ends of two chains of runs; empty if they are bit-equal."""
    if not equal_tensors(one.folder, other.folder, iteration):
        return "other weights or optimizer state"
    return "" if one.timeless_log() == other.timeless_log() else "another log"


def equal_tensors(one: Path, other: Path, iteration: int) -> bool:
    """Whether two checkpoints contain the same tensor files, byte for byte."""
    folders = [checkpoint_files.checkpoint_path(save, iteration) for save in (one, other)]
    names = [sorted(path.name for path in folder.glob("*.distcp")) for folder in folders]
    same, _, _ = filecmp.cmpfiles(*folders, names[0], shallow=False)
    return bool(names[0]) and names[0] == names[1] and sorted(same) == names[0]
