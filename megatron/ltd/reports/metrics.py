"""The history of a run, read from its ``metrics.jsonl``.

    run         one line per start or resume: what the run is, and the step that it continues from
    train       one line per step
    validation  one line per evaluation on held-out data
    scores      one line per evaluation on tasks

A run that was interrupted and resumed may have logged steps twice, or steps beyond the one that it resumed at. The
later line counts, and steps beyond the one that a run line resumes at are dropped. Numbers that are not finite are
null. A run of 370,000 steps is read in seconds. No torch here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json

METRICS = "metrics.jsonl"
_LINES_AT_ONCE = 1000
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

    Raises ``UserError`` if there is no metrics.jsonl, it has no step, or a line cannot be read. An incomplete last
    line, of a run that is writing or was killed, is skipped.
    """
    path = folder / METRICS
    starts: list[dict[str, Any]] = []
    records: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "validation": {}, "scores": {}}
    for number, line in enumerate(_read_lines(path), start=1):
        try:
            if line["kind"] == "run":
                starts.append(line)
                for lines in records.values():
                    for iteration in [found for found in lines if found > line["resumed_at"]]:
                        del lines[iteration]
            elif line["kind"] in records:
                records[line["kind"]][line["iteration"]] = line
            if line["kind"] == "train" and not line.keys() >= _STEP_FIELDS:
                raise KeyError
        except (KeyError, TypeError):
            raise _not_a_line(path, number) from None
    steps, validations, scores = (tuple(lines[key] for key in sorted(lines)) for lines in records.values())
    if not steps:
        raise UserError(f"{path} has no training step: give the --log-dir (or --save) folder of a run that has trained")
    return RunHistory(name, starts[-1] if starts else {}, steps, validations, scores, tuple(starts))


def _read_lines(path: Path) -> Iterator[Any]:
    """Every complete line of the file, parsed."""
    try:
        with path.open(encoding="utf-8") as file:
            first_number = 1
            while texts := list(islice(file, _LINES_AT_ONCE)):
                if not texts[-1].endswith("\n"):
                    texts.pop()
                yield from _parse_all(path, first_number, texts)
                first_number += len(texts)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the --log-dir (or --save) folder of a run"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text: give the folder of a run, or restore the file from a copy"
        ) from None


def _parse_all(path: Path, first_number: int, texts: list[str]) -> list[Any]:
    """Many lines as one JSON list: twice as fast, and the names of fields are stored once."""
    try:
        lines = parse_json(f"[{','.join(texts)}]")
        if len(lines) == len(texts):
            return lines
    except ValueError:
        pass
    return [_parse(path, number, text) for number, text in enumerate(texts, start=first_number)]


def _parse(path: Path, number: int, text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        raise _not_a_line(path, number) from None


def _not_a_line(path: Path, number: int) -> UserError:
    return UserError(f"{path}, line {number} is not a line of a run's log: remove it, or restore the file")
