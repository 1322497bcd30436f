"""The history of a run, read from its ``metrics.jsonl``.

    run         once a start, also after a resume: what the run is, and the step it goes on from
    train       a line a step
    validation  a line an evaluation

A run that was cut off and resumed has steps twice, or steps beyond the one it resumed at: the later line counts, and
what lies beyond the step that a run line resumes at has not happened. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RunHistory:
    """What a run did, step by step; ``name`` is what tables and figures call it."""

    name: str
    about: Mapping[str, Any]
    """The run line: config, versions, data, method."""
    steps: tuple[Mapping[str, Any], ...]
    """One train line for each step, in order."""
    validations: tuple[Mapping[str, Any], ...]
    """One validation line for each evaluation, in order."""

    @cached_property
    def flops(self) -> tuple[int, ...]:
        """FLOPs of training up to and with each step."""
        return tuple(accumulate(step["step_flops"] for step in self.steps))

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Seconds spent in training steps up to and with each step: no evaluation, saving or starting."""
        return tuple(accumulate(step["step_seconds"] for step in self.steps))

    def place_of(self, iteration: int) -> int:
        """Index in ``steps`` of the last step at or before ``iteration``."""
        return sum(step["iteration"] <= iteration for step in self.steps) - 1


def read_history(folder: Path, name: str) -> RunHistory:
    """The history of the run that logged to ``folder``.

    Raises ``UserError`` where there is no metrics.jsonl, it holds no step, or a line in it cannot be read. An
    unfinished last line, as a run leaves that is writing or was killed, is passed over.
    """
    path = folder / METRICS
    about: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    for line in _read_lines(path):
        kind = line["kind"]
        if kind == "run":
            about = line
            for records in (steps, validations):
                for iteration in [found for found in records if found > line["resumed_at"]]:
                    del records[iteration]
        elif kind == "train":
            steps[line["iteration"]] = line
        elif kind == "validation":
            validations[line["iteration"]] = line
    if not steps:
        raise UserError(
            f"{path} holds no training step: name the --log-dir (or --save) folder of a run that has trained"
        )
    return RunHistory(name, about, _in_order(steps), _in_order(validations))


def _in_order(records: Mapping[int, Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(records[iteration] for iteration in sorted(records))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name the --log-dir (or --save) folder of a run"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text: name the folder of a run, or restore the file from a copy"
        ) from None
    whole_lines = text.split("\n")[:-1]
    return [_parse(path, number, line) for number, line in enumerate(whole_lines, start=1)]


def _parse(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        line["kind"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}, line {number} is not a line that a run writes: remove it, or restore the file"
        ) from None
    return line
