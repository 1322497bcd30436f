"""The history of a run, read from its ``metrics.jsonl``.

    run         one line per start or resume: what the run is, and the step that it continues from
    train       one line per step
    validation  one line per evaluation on held-out data
    scores      one line per evaluation on tasks

A run that was interrupted and resumed may have logged steps twice, or steps beyond the one that it resumed at. The
later line counts, and steps beyond the one that a run line resumes at are dropped. Numbers that are not finite are
null. Damaged lines are left out and reported. A run of 370,000 steps is read in seconds. No torch here.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from types import NoneType
from typing import Any

from megatron.ltd.errors import UserError, reads_from
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import check_regular

METRICS = "metrics.jsonl"
_LINES_AT_ONCE = 1000
_BEYOND_STEPS = 1 << 200
"""Above every count and number of FLOPs."""
_STEP_FIELDS = frozenset(
    "iteration loss consumed_tokens consumed_layer_tokens step_flops dense_step_flops step_seconds".split()
)


@dataclass(frozen=True)
class RunHistory:
    """The log of a run, step by step; ``name`` is its name in tables and figures."""

    name: str
    about: Mapping[str, Any]
    """The latest run line: config, versions, data, method."""
    steps: tuple[Mapping[str, Any], ...]
    """One train line for each step, in order."""
    validations: tuple[Mapping[str, Any], ...]
    """One validation line for each evaluation, in order."""
    scores: tuple[Mapping[str, Any], ...] = ()
    """One line for each evaluation on tasks, in order: "<task>/<metric>" and its value."""
    starts: tuple[Mapping[str, Any], ...] = ()
    """Every run line: the first start, then each resume."""
    damage: str | None = None
    """What was left out of a damaged file, in one line."""

    def report_damage(self) -> None:
        """Print on the standard error what is missing, if anything is."""
        if self.damage is not None:
            print(f"warning: {self.damage}", file=sys.stderr)

    @cached_property
    def iterations(self) -> tuple[int, ...]:
        """The number of each step; the first step of a run is 1."""
        return tuple(step["iteration"] for step in self.steps)

    @cached_property
    def flops(self) -> tuple[int, ...]:
        """FLOPs of training up to and with each step."""
        return tuple(accumulate(step["step_flops"] for step in self.steps))

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Seconds spent in training steps up to and with each step, without evaluation, saving and start-up."""
        return tuple(accumulate(step["step_seconds"] for step in self.steps))

    def place_of(self, iteration: int) -> int:
        """Index in ``steps`` of the last step at or before ``iteration``."""
        return bisect_right(self.iterations, iteration) - 1


def read_history(folder: Path, name: str) -> RunHistory:
    """The history of the run that logged to ``folder``.

    Raises ``UserError`` if there is no metrics.jsonl, or it has no step. Damaged lines are left out (``damage``); an
    incomplete last line, of a run that is writing or was killed, is not damage.
    """
    path = folder / METRICS
    starts: list[dict[str, Any]] = []
    records: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "validation": {}, "scores": {}}
    damaged: list[int] = []
    for number, line in enumerate(_read_lines(path), start=1):
        if not _is_whole(line):
            damaged.append(number)
        elif line["kind"] == "run":
            starts.append(line)
            for lines in records.values():
                for iteration in [found for found in lines if found > line["resumed_at"]]:
                    del lines[iteration]
        elif line["kind"] in records:
            records[line["kind"]][line["iteration"]] = line
    steps, validations, scores = (tuple(lines[key] for key in sorted(lines)) for lines in records.values())
    if not steps:
        raise UserError(f"{path} has no training step: give the --log-dir (or --save) folder of a run that has trained")
    about = starts[-1] if starts else {}
    return RunHistory(name, about, steps, validations, scores, tuple(starts), _damage(path, damaged))


def _is_whole(line: Any) -> bool:
    """Whether a parsed line has what its kind must have, as numbers."""
    if type(line) is not dict or type(line.get("kind")) is not str:
        return False
    if line["kind"] == "run":
        return type(line.get("resumed_at")) is int
    needed = {"train": _STEP_FIELDS, "validation": {"iteration", "loss"}}.get(line["kind"], {"iteration"})
    if not line.keys() >= needed or any(line[name] is None for name in needed if name != "loss"):
        return False
    values = [value for name, value in line.items() if name != "kind"]
    is_bounded = all(abs(value) < _BEYOND_STEPS for value in values if type(value) is int)
    return {*map(type, values)} <= {int, float, NoneType} and type(line["iteration"]) is int and is_bounded


def _damage(path: Path, damaged: list[int]) -> str | None:
    if not damaged:
        return None
    others = f" and {len(damaged) - 1} others are" if len(damaged) > 1 else " is"
    return f"{path}: line {damaged[0]}{others} damaged and left out; restore the file from a copy to have all of it"


def _read_lines(path: Path) -> Iterator[Any]:
    """Every complete line of the file, parsed; None for a damaged one."""
    with reads_from(f"{path}", "give the --log-dir (or --save) folder of a run"):
        check_regular(path)
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            while texts := list(islice(file, _LINES_AT_ONCE)):
                if not texts[-1].endswith("\n"):
                    texts.pop()
                yield from _parse_all(texts)


def _parse_all(texts: list[str]) -> list[Any]:
    """Many lines as one JSON list: twice as fast, and the names of fields are stored once. None for a damaged line."""
    try:
        lines = parse_json(f"[{','.join(texts)}]")
        if len(lines) == len(texts):
            return lines
    except ValueError:
        pass
    return [_parse(text) for text in texts]


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
