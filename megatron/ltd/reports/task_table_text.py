"""A comparison of runs on tasks as a table: markdown, or LaTeX with booktabs.

| task | metric | dense | random-LTD |            shares in percent, each with its standard error;
| PIQA | acc_norm | 71.2 ± 1.1 | 71.0 ± 1.1 |     then the average, then what is no share
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron.ltd.reports.task_results import Score
from megatron.ltd.reports.task_table import Comparison, Row

_MISSING = "-"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def markdown_table(comparison: Comparison) -> str:
    """The table, and its notes as a list below."""
    header = ["task", "metric", *comparison.names]
    lines = [_markdown_line(header), _markdown_line(["---", "---", *("---:" for _ in comparison.names)])]
    above, average, below = _cells(comparison, " ± ")
    lines += map(_markdown_line, above)
    lines += [_markdown_line([f"**{cell}**" if cell else "" for cell in average])] if average else []
    lines += map(_markdown_line, below)
    notes = [f"- {note}" for note in comparison.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def latex_table(comparison: Comparison) -> str:
    """A ``tabular`` for the booktabs package; its notes as comments above it."""
    above, average, below = _cells(comparison, r" $\pm$ ")
    lines = [f"% {note}" for note in comparison.notes]
    lines += [r"\begin{tabular}{ll" + "r" * len(comparison.names) + "}", r"\toprule"]
    lines += [_latex_line(map(_escaped, ["task", "metric", *comparison.names])), r"\midrule"]
    lines += [_latex_line([_escaped(row[0]), _escaped(row[1]), *row[2:]]) for row in above]
    for rows in ([average] if average else [], below):
        if rows:
            lines.append(r"\midrule")
        lines += [_latex_line([_escaped(row[0]), _escaped(row[1]), *row[2:]]) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _cells(comparison: Comparison, plus_minus: str) -> tuple[list[list[str]], list[str], list[list[str]]]:
    """The cells of the shares, of the average (empty where there is none) and of the other rows."""
    shares = [row for row in comparison.rows if row.is_share]
    others = [row for row in comparison.rows if not row.is_share]
    average: list[str] = []
    if comparison.averages is not None:
        title = f"average of {comparison.num_averaged} task{'s' if comparison.num_averaged != 1 else ''}"
        average = [title, "", *(_percent(score, plus_minus) for score in comparison.averages)]
    return (
        [[row.title, row.metric, *(_percent(score, plus_minus) for score in row.scores)] for row in shares],
        average,
        [_other(row, plus_minus) for row in others],
    )


def _percent(score: Score | None, plus_minus: str) -> str:
    if score is None:
        return _MISSING
    text = f"{100 * score.value:.1f}"
    return text if score.standard_error is None else f"{text}{plus_minus}{100 * score.standard_error:.1f}"


def _other(row: Row, plus_minus: str) -> list[str]:
    cells = []
    for score in row.scores:
        if score is None:
            cells.append(_MISSING)
            continue
        error = "" if score.standard_error is None else f"{plus_minus}{score.standard_error:.2f}"
        cells.append(f"{score.value:.2f}{error}")
    return [row.title, f"{row.metric}{' (lower is better)' if row.lower_is_better else ''}", *cells]


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
