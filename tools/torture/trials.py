"""One trial and its verdict, and the journal: a file with one line of JSON for each trial."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
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
    def is_wrong(self) -> bool:
        return bool(self.problem) and not self.is_skipped

    @property
    def is_right(self) -> bool:
        return not self.problem


class Journal:
    """The trials of all starts with one seed. Several processes may add to it at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, seed: int, trial: Trial) -> None:
        self._append({"seed": seed, **asdict(trial)})

    def start(self, seed: int, command: str) -> None:
        """Note that ``command`` begins or goes on."""
        self._append({"seed": seed, "start": command})

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())  # one write, so that lines of several processes do not mix
        finally:
            os.close(descriptor)

    def read(self, seed: int) -> list[Trial]:
        """The trials with this seed; of a trial that was repeated the last. A line that was cut off is left out."""
        found = {(trial.campaign, trial.number): trial for trial in self._all(seed)}
        return sorted(found.values(), key=lambda trial: (trial.campaign, trial.number))

    def mended(self, seed: int) -> list[str]:
        """The problems of trials that were wrong once and are right now."""
        right = {(trial.campaign, trial.number) for trial in self.read(seed) if trial.is_right}
        wrong = (trial for trial in self._all(seed) if trial.is_wrong and (trial.campaign, trial.number) in right)
        return sorted({(trial.campaign, trial.number): trial.problem for trial in wrong}.values())

    def starts(self, seed: int) -> list[str]:
        """The commands of all starts, each once."""
        return list(dict.fromkeys(record["start"] for record in self._records(seed) if "start" in record))

    def _all(self, seed: int) -> Iterator[Trial]:
        return (Trial(**record) for record in self._records(seed) if "start" not in record)

    def _records(self, seed: int) -> Iterator[dict[str, Any]]:
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.pop("seed") == seed:
                yield record
