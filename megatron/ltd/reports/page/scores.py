"""Scores of a model on tasks as rows of a table: lm-eval's results, and the lines that a run wrote while it trained.

Not here: how result files are read (``task_results``), which metric of a task counts, averages (``task_table``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.reports.figures.panels import score_names
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.task_results import TaskResult, read_results

Row = tuple[str, ...]
HEADER = ("task", "metric", "score", "standard error", "shots", "examples", "file")
CURVE_HEADER = ("score", "evaluations", "first", "last", "at step")


def read_scores(paths: Sequence[str]) -> list[Row]:
    """A row for each task and metric, see ``HEADER``; of a task in several paths the last. Raises ``UserError``."""
    rows: dict[str, list[Row]] = {}
    for path in paths:
        results = read_results(Path(path), flag="--scores")
        for task, result in results.tasks.items():
            rows[task] = _rows(task, result, results.older.get(task, results.path.name))
    return [row for task_rows in rows.values() for row in task_rows]


def _rows(task: str, result: TaskResult, file: str) -> list[Row]:
    of_filters = {key.partition(",")[0] for key in result.scores if "," in key}
    return [
        (
            task,
            _spelled(key),
            _shown(score.value),
            _shown(score.standard_error),
            _shown(result.num_fewshot),
            _shown(result.num_samples),
            file,
        )
        for key, score in result.scores.items()
        if key not in of_filters  # those stand there once more, with the name of their filter
    ]


def _spelled(key: str) -> str:
    metric, _, filter_name = key.partition(",")
    return metric if filter_name in ("", "none") else f"{metric} ({filter_name})"


def curve_rows(history: RunHistory) -> list[Row]:
    """A row for each score of the run's own lines, see ``CURVE_HEADER``."""
    rows: list[Row] = []
    for name in score_names([history]):
        lines = [line for line in history.scores if line.get(name) is not None]
        if lines:
            first, last = lines[0], lines[-1]
            rows.append((name, f"{len(lines)}", _shown(first[name]), _shown(last[name]), f"{last['iteration']:,}"))
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return format(value, ".4f" if abs(value) < 100 else ".2f" if abs(value) < 1e6 else ".4g")
    return str(value) if isinstance(value, int) else "-"
