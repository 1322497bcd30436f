"""Reads lm-eval's result files: the scores of each task, and the settings that they depend on.

    PATH/results_2026-01-31T12-00-00.json -> RunResults("dense", {"piqa": TaskResult({"acc": Score(0.71, 0.01)}, ...)})

A folder stands for the newest result file in it or below it; tasks that are missing there are taken from older files of
the same model, for example if one job scored each task. Groups are left out, since their tasks are there.
Not here: which metric of a task counts, and averages (``task_table``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import LARGE_BYTES, read_small

_BY_TASK = ("config", "groups", "group_subtasks", "n-samples", "higher_is_better", "versions", "n-shot", "task_hashes")
"""Parts of a result file besides the scores: values by task, or by name. lm-eval leaves out what it does not know."""
_COUNTS = ("effective", "original")
_BY_TASK_AND_NAME = ("n-samples", "higher_is_better")


@dataclass(frozen=True)
class Score:
    """The value of a metric and its standard error, as in lm-eval: accuracies are between 0 and 1."""

    value: float
    standard_error: float | None
    """None if lm-eval gave none (for one sample, or without bootstrap)."""


@dataclass(frozen=True)
class TaskResult:
    """The scores of a task in one run, and what must be equal to compare them."""

    scores: Mapping[str, Score]
    """By metric, in lm-eval's order; also by ``metric,filter``."""
    lower_is_better: frozenset[str]
    version: Any
    num_fewshot: Any
    num_samples: int | None
    num_all_samples: int | None
    """Of the whole task; more than ``num_samples`` with ``--limit``."""
    content_hash: str | None
    """Of all documents, prompts and targets; only with ``--log_samples``."""


@dataclass(frozen=True)
class RunResults:
    """One result file."""

    name: str
    path: Path
    tasks: Mapping[str, TaskResult]
    lm_eval_version: str | None
    older: Mapping[str, str] = field(default_factory=dict)
    """Tasks that the newest file does not have, with the names of the older files that have them."""
    num_unused: int = 0
    """Older files in the folder that are not used."""


def read_results(path: Path, name: str | None = None, *, flag: str = "--results") -> RunResults:
    """The results in ``path``, a file or a folder.

    ``name``: by default the folder's; ``flag``: the flag that gave the path. Raises ``UserError`` if there are no
    results, or a file is incomplete or something else.
    """
    files = _result_files(path, flag)
    newest = _read(files[-1], flag)
    tasks = _task_results(newest)
    older: dict[str, str] = {}
    if not tasks:
        raise UserError(f"{flag} {path}: {files[-1]} has no score; give the results of an evaluation that has ended")
    for file in reversed(files[:-1]):
        content = _read(file, flag)
        if _model(content) == _model(newest):
            lacking = {task: result for task, result in _task_results(content).items() if task not in tasks}
            tasks |= lacking
            older |= dict.fromkeys(lacking, file.name)
    default = path.resolve().name if path.is_dir() else path.resolve().parent.name
    num_unused = len(files) - 1 - len(set(older.values()))
    return RunResults(name or default, files[-1], tasks, newest.get("lm_eval_version"), older, num_unused)


def _model(content: dict[str, Any]) -> tuple[Any, ...]:
    """What is equal in result files of one model."""
    config = content["config"]
    return (content.get("model_name"), *(config.get(name) for name in ("model", "model_args", "iteration")))


def _task_results(content: dict[str, Any]) -> dict[str, TaskResult]:
    groups = {*content["group_subtasks"], *content["groups"]}
    tasks = {task: _task_result(task, content) for task in content["results"] if task not in groups}
    return {task: result for task, result in tasks.items() if result.scores}


def _result_files(path: Path, flag: str) -> list[Path]:
    """The result files that ``path`` stands for, oldest first: their names end in the time."""
    if path.is_dir():
        files = sorted(path.rglob("results_*.json"), key=lambda file: (file.name, file))
        if not files:
            raise UserError(
                f"{flag} {path}: has no results_*.json; give the --output_path of an evaluation, or a result file"
            )
        folders = sorted({str(file.parent) for file in files})
        if len(folders) > 1:
            raise UserError(
                f"{flag} {path}: has results of several models; give one of the folders {', '.join(folders[:4])}"
            )
        return files
    if not path.is_file():
        raise UserError(f"{flag} {path}: no such file or folder; give the --output_path of an evaluation")
    return [path]


def _read(path: Path, flag: str) -> dict[str, Any]:
    try:
        content = parse_json(read_small(path, LARGE_BYTES))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{flag} {path}: is not complete JSON ({error.msg} at line {error.lineno}); give a result file of lm-eval, "
            "or evaluate again if this one is incomplete"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error}); give a result file of lm-eval") from None
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not all(isinstance(values, dict) for values in results.values()):
        found = f"the fields {', '.join(list(content)[:5])}" if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f'{flag} {path}: expected lm-eval\'s results, with "results" by task, found {found or "nothing"}'
        )
    content |= {name: {} for name in _BY_TASK if content.get(name) is None}
    problem = _problem(content)
    if problem is not None:
        raise UserError(f"{flag} {path}: {problem}; give a result file as lm-eval wrote it")
    return content


def _problem(content: dict[str, Any]) -> str | None:
    """What in a result file is not as lm-eval writes it, besides the scores; None if all is."""
    for name in _BY_TASK:
        if not isinstance(content[name], dict):
            return f'expected "{name}" to be an object, found {type(content[name]).__name__}'
    for name in _BY_TASK_AND_NAME:
        if not all(isinstance(values, dict | None) for values in content[name].values()):
            return f'expected "{name}" to hold an object for each task'
    counts = [values.get(name) for values in content["n-samples"].values() if values for name in _COUNTS]
    if not all(count is None or type(count) is int for count in counts):
        return f'expected "n-samples" to hold counts, {" and ".join(_COUNTS)}'
    if not all(isinstance(value, str | None) for value in content["task_hashes"].values()):
        return 'expected "task_hashes" to hold a text for each task'
    return None


def _task_result(task: str, content: dict[str, Any]) -> TaskResult:
    values = content["results"][task]
    scores: dict[str, Score] = {}
    for key, value in values.items():
        metric, _, filter_name = key.partition(",")
        if not _is_number(value) or metric.endswith("_stderr") or metric == "sample_len":
            continue
        error = values.get(f"{metric}_stderr,{filter_name}" if filter_name else f"{metric}_stderr")
        score = Score(float(value), float(error) if _is_number(error) else None)
        scores.setdefault(metric, score)  # the first of several filters, unless one is chosen
        if filter_name:
            scores[key] = score
    samples = content["n-samples"].get(task) or {}
    higher = content["higher_is_better"].get(task) or {}
    return TaskResult(
        scores,
        frozenset(metric for metric, is_better in higher.items() if is_better is False),
        content["versions"].get(task),
        content["n-shot"].get(task),
        samples.get("effective"),
        samples.get("original"),
        content["task_hashes"].get(task),
    )


def _is_number(value: Any) -> bool:
    """Whether ``value`` is a number that a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
