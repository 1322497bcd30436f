"""The panels of a figure of runs.

    loss            training, smoothed, and held-out data          for a single run also every step, faintly
    <measure>       other measures of evaluation: accuracy, masked LM loss, ...
    learning rate
    kept tokens     of the layer that keeps fewest
    depth           layers that ran, smoothed                      if some are dropped
    saving          1 - FLOPs / dense FLOPs, of each step and of the run so far
    <task>/<metric> scores on tasks

Panels without values are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron.ltd.reports.figures.axes import Floats, column, places_of
from megatron.ltd.reports.figures.curves import Curve, line, marks, smoothed, thinned, window_steps
from megatron.ltd.reports.metrics import RunHistory

_NOT_MEASURES = ("kind", "iteration", "loss", "perplexity")
_ERROR = "_stderr"


@dataclass(frozen=True)
class Panel:
    """One panel: a title, an explanation of its lines, and the curves of each run."""

    title: str
    note: str
    curves: tuple[tuple[Curve, ...], ...]
    """Of each run, in the order of the runs; empty for a run without values."""
    from_zero: bool = False
    """Whether the scale starts at 0."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(len(curve.places) for curves in self.curves for curve in curves)


def loss_panel(histories: Sequence[RunHistory]) -> Panel:
    """Training loss and loss on held-out data."""
    losses = [column(history, "loss") for history in histories]
    is_smoothed = any(window_steps(len(values)) > 1 for values in losses)
    note = [f"line: training{', smoothed' if is_smoothed else ''}", "points: held-out"]
    if any(np.isnan(values).any() for values in losses):
        note.append("crosses: not finite")
    curves = []
    for history, values in zip(histories, losses, strict=True):
        every_step = [line(values, "faint")] if len(histories) == 1 else []
        held_out = _evaluated(history, history.validations, "loss")
        curves.append((*every_step, smoothed(values, "thin"), held_out, marks(np.isnan(values))))
    return Panel("loss", ", ".join(note), tuple(curves))


def panels_of(histories: Sequence[RunHistory]) -> list[Panel]:
    """Every panel for which a run has values."""
    panels = [
        loss_panel(histories),
        *(_evaluations(histories, "validations", name, "held-out") for name in _measures(histories)),
        _each("learning rate", "", [line(column(history, "lr"), "strong") for history in histories], from_zero=True),
        _each(
            "kept tokens", "of the layer that keeps fewest",
            [line(column(history, "kept_tokens"), "strong", is_stepped=True) for history in histories], from_zero=True,
        ),
        _depth_panel(histories),
        _saving_panel(histories),
        *(_evaluations(histories, "scores", name) for name in score_names(histories)),
    ]  # fmt: skip
    return [panel for panel in panels if not panel.is_empty]


def score_names(histories: Sequence[RunHistory]) -> list[str]:
    """The "<task>/<metric>" names of all scores lines, in order, without standard errors of others."""
    names = dict.fromkeys(
        name for history in histories for scores in history.scores for name in scores if name not in _NOT_MEASURES[:2]
    )
    return [name for name in names if not (name.endswith(_ERROR) and name.removesuffix(_ERROR) in names)]


def _measures(histories: Sequence[RunHistory]) -> list[str]:
    found = (name for history in histories for validation in history.validations for name in validation)
    return [name for name in dict.fromkeys(found) if name not in _NOT_MEASURES and not name.endswith("/perplexity")]


def _each(title: str, note: str, curves: Sequence[Curve], *, from_zero: bool = False) -> Panel:
    return Panel(title, note, tuple((curve,) for curve in curves), from_zero)


def _evaluations(histories: Sequence[RunHistory], lines: str, name: str, note: str = "") -> Panel:
    title = name if lines == "scores" else name.replace("_", " ")
    return _each(title, note, [_evaluated(history, getattr(history, lines), name) for history in histories])


def _depth_panel(histories: Sequence[RunHistory]) -> Panel:
    depths = [column(history, "depth") for history in histories]
    layers = [column(history, "num_layers") for history in histories]
    dropped = any((depth < num).any() for depth, num in zip(depths, layers, strict=True))
    curves = [smoothed(depth, "strong") for depth in depths] if dropped else []
    return _each("layers that ran", "mean of a step's microbatches, smoothed", curves, from_zero=True)


def _saving_panel(histories: Sequence[RunHistory]) -> Panel:
    curves = []
    for history in histories:
        flops, dense_flops = column(history, "step_flops"), column(history, "dense_step_flops")
        each_step = line(100.0 * (1.0 - flops / dense_flops), "thin", is_stepped=True)
        so_far = line(100.0 * (1.0 - np.cumsum(flops) / np.cumsum(dense_flops)), "strong")
        curves.append((each_step, so_far))
    return Panel("FLOPs saved [%]", "thin: of each step, thick: of the run so far", tuple(curves), from_zero=True)


def _evaluated(history: RunHistory, lines: Sequence[Any], name: str) -> Curve:
    """A measure over the evaluations of a run that have it."""
    values = _floats(lines, name)
    places, kept = thinned(values, places_of(history, lines))
    errors = _floats(lines, name + _ERROR)
    whole = len(kept) == len(values) and bool(np.isfinite(errors).all()) and len(errors) > 0
    return Curve(places, kept, "points", errors if whole else None)


def _floats(lines: Sequence[Any], name: str) -> Floats:
    found = [line.get(name) for line in lines]
    return np.array([value if isinstance(value, (int, float)) else None for value in found], dtype=np.float64)
