"""The stages of a run as its log shows them: neighbouring steps with one batch and one number of kept tokens.

    steps     1 ........................................ last step logged
    stages    |  64   |  80   |  96   |   ...   |   256   |       at most ROWS rows: where there are more, neighbours
                                                                  share a row, and the last stage has one of its own

What ran, not what was planned: the log needs no model and no data to say so, and also knows the seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron.ltd.format import format_count, format_flops
from megatron.ltd.plan.table import format_rate
from megatron.ltd.reports.figures.axes import Floats, column
from megatron.ltd.reports.metrics import RunHistory

Row = tuple[str, ...]
ROWS = 12
_NAMES = ("batch_size", "kept_tokens", "depth", "num_layers", "lr", "dense_step_flops", "step_seconds")
_HEADER = (
    "steps", "batch", "kept tokens", "depth", "tokens", "layer tokens", "learning rate", "FLOPs", "of dense",
    "share of FLOPs", "s a step",
)  # fmt: skip


@dataclass(frozen=True)
class _Log:
    """Columns of all steps [n]."""

    history: RunHistory
    columns: dict[str, Floats]
    tokens: Floats
    """Of each step alone; NaN of the first where the log begins in the middle of the run."""
    layer_tokens: Floats


def stage_rows(history: RunHistory) -> tuple[Row, list[Row]]:
    """Header and rows of the table. Ranges are ends of a row; seconds are the median step's."""
    begins = history.iterations[0] == 1
    log = _Log(
        history,
        {name: column(history, name) for name in _NAMES},
        _each(column(history, "consumed_tokens"), begins),
        _each(column(history, "consumed_layer_tokens"), begins),
    )
    rows = [_row(log, first, end) for first, end in _groups(log)]
    hidden = set()
    if not (log.columns["depth"] < log.columns["num_layers"]).any():
        hidden.add(_HEADER.index("depth"))
    return _without(_HEADER, hidden), [_without(row, hidden) for row in rows]


def shared_rows(num_stages: int) -> list[tuple[int, int]]:
    """First stage and the one after the last of every row: equal shares of all but the last stage, which is alone."""
    num_growing = num_stages - 1
    num_shared = min(num_growing, ROWS - 1)
    firsts = [num_growing * row // num_shared for row in range(num_shared)] + [num_growing]
    return list(zip(firsts, [*firsts[1:], num_stages], strict=True))


def span(first: object, last: object) -> str:
    """Both ends of something, or one where they are the same."""
    return f"{first}" if first == last else f"{first} – {last}"


def _each(consumed: Floats, begins: bool) -> Floats:
    return np.diff(consumed, prepend=0.0 if begins else np.nan)


def _groups(log: _Log) -> list[tuple[int, int]]:
    """First step and the one after the last of every row."""
    changes = np.zeros(len(log.tokens), dtype=bool)
    for name in ("batch_size", "kept_tokens"):
        values = np.nan_to_num(log.columns[name], nan=-1.0)
        changes[1:] |= values[1:] != values[:-1]
    bounds = [0, *np.flatnonzero(changes).tolist(), len(changes)]
    return [(bounds[first], bounds[end]) for first, end in shared_rows(len(bounds) - 1)]


def _row(log: _Log, first: int, end: int) -> Row:
    columns = {name: values[first:end] for name, values in log.columns.items()}
    iterations, all_flops = log.history.iterations, log.history.flops
    flops = all_flops[end - 1] - (all_flops[first - 1] if first else 0)
    return (
        span(iterations[first], iterations[end - 1]),
        _ends(columns["batch_size"], ".0f"),
        _ends(columns["kept_tokens"], ".0f"),
        _number(columns["depth"].mean(), ".1f"),
        _count(log.tokens[first:end].sum()),
        _count(log.layer_tokens[first:end].sum()),
        span(_rate(columns["lr"][0]), _rate(columns["lr"][-1])),
        format_flops(flops),
        f"{flops / columns['dense_step_flops'].sum():.1%}",
        f"{flops / all_flops[-1]:.1%}",
        _number(float(np.median(columns["step_seconds"])), ".3g"),
    )


def _without(cells: Row, hidden: set[int]) -> Row:
    return tuple(cell for place, cell in enumerate(cells) if place not in hidden)


def _number(value: float, layout: str) -> str:
    return "-" if np.isnan(value) else format(value, layout)


def _rate(value: float) -> str:
    return "-" if np.isnan(value) else format_rate(value)


def _count(value: float) -> str:
    return "-" if np.isnan(value) else format_count(value)


def _ends(values: Floats, layout: str) -> str:
    return span(_number(values[0], layout), _number(values[-1], layout))
