"""Scores of a model on tasks as rows of a table: lm-eval's results, and the scores that a run logged during training.

Not here: how result files are read (``task_results``), which metric of a task counts, averages (``task_table``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.reports.figures.panels import score_names
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.task_results import TaskResult, read_results

Row = tuple[str, ...]


def read_scores(paths: Sequence[str]) -> list[Row]:
    """Task, metric, score, standard error, shots, examples and file of each; the last path that has a task counts.

    Raises ``UserError``.
    """
    rows: dict[str, list[Row]] = {}
    for path in paths:
        results = read_results(Path(path), flag="--scores")
        for task, result in results.tasks.items():
            rows[task] = list(_rows(task, result, results.older.get(task, results.path.name)))
    return [row for task_rows in rows.values() for row in task_rows]


def _rows(task: str, result: TaskResult, file: str) -> Iterator[Row]:
    filtered = {key.partition(",")[0] for key in result.scores if "," in key}
    for key, score in result.scores.items():
        if key not in filtered:  # these are listed by filter
            metric, _, filter_name = key.partition(",")
            title = metric if filter_name in ("", "none") else f"{metric} ({filter_name})"
            values = (score.value, score.standard_error, result.num_fewshot, result.num_samples)
            yield (task, title, *map(_text, values), file)


def curve_rows(history: RunHistory) -> list[Row]:
    """Name, number of evaluations, first and last value, and its step of each score that the run logged."""
    rows: list[Row] = []
    for name in score_names([history]):
        lines = [line for line in history.scores if line.get(name) is not None]
        if lines:
            first, last = lines[0], lines[-1]
            rows.append((name, f"{len(lines)}", _text(first[name]), _text(last[name]), f"{last['iteration']:,}"))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, float):
        return format(value, ".4f" if abs(value) < 100 else ".2f" if abs(value) < 1e6 else ".4g")
    return str(value) if isinstance(value, int) else "-"
