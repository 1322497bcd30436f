"""A comparison of runs on tasks as a table: Markdown, or LaTeX for the booktabs package.

| task | metric | dense | random-LTD |            shares in percent, each with its standard error;
| PIQA | acc_norm | 71.2 ± 1.1 | 71.0 ± 1.1 |     then the average, then the other metrics
"""

from __future__ import annotations

from tabulate import SEPARATING_LINE, tabulate

from megatron.ltd.format import markdown_table, without_markup
from megatron.ltd.reports.task_results import Score
from megatron.ltd.reports.task_table import Comparison, Row

_MISSING = "-"


def to_markdown(comparison: Comparison) -> str:
    """The table, and its notes as a list below it."""
    shares, average, others = _cells(comparison)
    bold = [[f"**{cell}**" if cell else "" for cell in row] for row in average]
    rows = [[without_markup(cell) for cell in row] for row in (*shares, *bold, *others)]
    table = markdown_table(rows, [without_markup(cell) for cell in _header(comparison)], num_labels=2)
    notes = [f"- {without_markup(note)}" for note in comparison.notes]
    return "\n".join([table, *(["", *notes] if notes else [])]) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A ``tabular`` with its notes as comments above it."""
    shares, average, others = _cells(comparison)
    rows: list[list[str] | str] = [*shares]
    for more in (average, others):
        rows += [SEPARATING_LINE, *more] if more else []
    alignment = ["left", "left", *("right" for _ in comparison.names)]
    table = tabulate(rows, _header(comparison), tablefmt="latex_booktabs", disable_numparse=True, colalign=alignment)
    return (
        "\n".join([*(f"% {' '.join(note.split())}" for note in comparison.notes), table.replace("±", r"$\pm$")]) + "\n"
    )


def _header(comparison: Comparison) -> list[str]:
    return ["task", "metric", *(" ".join(name.split()) for name in comparison.names)]


def _cells(comparison: Comparison) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """The rows of the shares, of the average (none without one) and of the other metrics."""
    average = []
    if comparison.averages is not None:
        title = f"average of {comparison.num_averaged} task{'s' if comparison.num_averaged != 1 else ''}"
        average = [[title, "", *(_text(score, 100, 1) for score in comparison.averages)]]
    shares, others = ([row for row in comparison.rows if row.is_share is wanted] for wanted in (True, False))
    return [_row(row, 100, 1) for row in shares], average, [_row(row, 1, 2) for row in others]


def _row(row: Row, scale: float, digits: int) -> list[str]:
    metric = f"{row.metric}{' (lower is better)' if row.lower_is_better else ''}"
    return [
        " ".join(row.title.split()),
        " ".join(metric.split()),
        *(_text(score, scale, digits) for score in row.scores),
    ]


def _text(score: Score | None, scale: float, digits: int) -> str:
    if score is None:
        return _MISSING
    error = "" if score.standard_error is None else f" ± {scale * score.standard_error:.{digits}f}"
    return f"{scale * score.value:.{digits}f}{error}"
