"""One trial and its verdict, and the journal: a file with one line of JSON for each trial."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """What was tried, and how it ended."""

    campaign: str
    number: int
    kind: str
    """What the table counts it under."""
    what: str
    """What was done, for a reader: a command line, or the file and its damage."""
    ending: str
    """How it ended: an exit status and a line."""
    problem: str
    """What is wrong; empty if nothing is, "skipped: ..." if it cannot be tried here."""
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures of the campaign's own, such as the moments of kills."""

    @property
    def is_skipped(self) -> bool:
        return self.problem.startswith("skipped: ")

    @property
    def is_right(self) -> bool:
        return not self.problem


class Journal:
    """The trials of all starts with one seed. Several processes may add to it at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, seed: int, trial: Trial) -> None:
        line = json.dumps({"seed": seed, **asdict(trial)}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())  # one write, so that lines of several processes do not mix
        finally:
            os.close(descriptor)

    def read(self, seed: int) -> list[Trial]:
        """The trials with this seed; of a trial that was repeated the last. A line that was cut off is left out."""
        found: dict[tuple[str, int], Trial] = {}
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.pop("seed") == seed:
                trial = Trial(**record)
                found[trial.campaign, trial.number] = trial
        return sorted(found.values(), key=lambda trial: (trial.campaign, trial.number))
