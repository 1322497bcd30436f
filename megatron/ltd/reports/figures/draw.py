"""Draws panels of runs with matplotlib, without a window system and without changing its settings.

    one axis      panels side by side, in up to three columns
    several       one row per panel, one column per axis

A run has the same colour (from a palette for colour-blind readers), marker and dash in every panel. Of equal curves the
first is the widest, so that none is hidden. The legend is above the panels and covers nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.ltd.errors import UserError
from megatron.ltd.reports.figures.axes import AXES, Floats
from megatron.ltd.reports.figures.curves import Curve
from megatron.ltd.reports.figures.panels import Panel, loss_panel
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.output import write_output

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#202124"
_MARKERS = "os^Dvp"
_DASHES = ("-", "--", ":", "-.")
_MARKED_POINTS = 20
_WIDER, _MOST_WIDER = 1.4, 4.2
_LOOKS: dict[str, dict[str, Any]] = {
    "strong": {"linewidth": 1.6},
    "thin": {"linewidth": 0.9, "alpha": 0.6},
    "faint": {"linewidth": 0.5, "alpha": 0.25},
    "points": {"linewidth": 1.6, "markersize": 4.0},
    "marks": {"linestyle": "none", "marker": "x", "markersize": 4.0},
}
_PANEL_INCHES, _HEIGHT_INCHES = 4.8, 2.7
_NAME_INCHES, _LETTER_INCHES = 0.7, 0.085  # in the legend: a line with its marker and spaces, and a wide letter


def check_matplotlib(flag: str, path: Path) -> None:
    """Raises ``UserError`` if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(f'{flag} {path}: needs the package matplotlib; run pip install "megatron-ltd[plot]"') from None


def draw_losses(histories: Sequence[RunHistory]) -> Any:
    """The loss over FLOPs and over seconds, as a matplotlib figure."""
    return draw(histories, [loss_panel(histories)], ("flops", "seconds"))


def draw(
    histories: Sequence[RunHistory], panels: Sequence[Panel], axis_names: Sequence[str], *, legend: bool = True
) -> Any:
    """The matplotlib figure of ``panels`` over axes of ``AXES``; ``legend``: with the names of the runs."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if len(axis_names) > 1:
        rows, columns = len(panels), len(axis_names)
        cells = [(panel, name) for panel in panels for name in axis_names]
    else:
        columns = 1 if len(panels) == 1 else 2 if len(panels) <= 8 else 3
        rows = -(-len(panels) // columns)
        cells = [(panel, axis_names[0]) for panel in panels]
    figure = Figure(figsize=(_PANEL_INCHES * columns, _HEIGHT_INCHES * rows + 0.5))
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
    frames = figure.subplots(rows, columns, squeeze=False, sharey="row" if len(axis_names) > 1 else False)
    for number, frame in enumerate(frames.flat):
        if number >= len(cells):
            frame.set_axis_off()
            continue
        panel, axis_name = cells[number]
        _draw_panel(frame, panel, histories, axis_name)
        frame.set_title(_literal(panel.title), loc="left", fontsize=10.5, fontweight="bold", color=INK)
        if panel.note and (len(axis_names) == 1 or number % columns == 0):
            frame.set_title(panel.note, loc="right", fontsize=8.0, color=INK)
    if legend:
        _legend(figure, histories)
    return figure


def rendered(figure: Any, suffix: str, **metadata: None) -> bytes:
    """The figure as a .png, .pdf or .svg file without this ``metadata``; the same figure gives the same bytes."""
    import matplotlib

    content = io.BytesIO()
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
    with matplotlib.rc_context({"svg.hashsalt": "megatron-ltd"}):
        figure.savefig(content, format=suffix[1:], dpi=150, metadata=dates | metadata)
    return content.getvalue()


def save(figure: Any, flag: str, path: Path) -> None:
    """Write the figure in the format of the file's ending. Raises ``UserError``."""
    write_output(flag, path, rendered(figure, path.suffix.lower()))


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": _DASHES[number // len(COLOURS) % len(_DASHES)]}


def _num_over(panel: Panel, number: int, curve: Curve) -> int:
    """How many curves of later runs are equal to this one and hide it."""
    return sum(
        other.look == curve.look
        and np.array_equal(other.places, curve.places)
        and np.array_equal(other.values, curve.values)
        for curves in panel.curves[number + 1 :]
        for other in curves
    )


def _draw_panel(frame: Any, panel: Panel, histories: Sequence[RunHistory], axis_name: str) -> None:
    axis = AXES[axis_name]
    places = [axis.values(history) for history in histories]
    unit, label = axis.unit(max(float(values[-1]) for values in places))
    for number, (curves, values) in enumerate(zip(panel.curves, places, strict=True)):
        for curve in curves:
            style = _style(number) | _LOOKS[curve.look]
            if curve.look in ("strong", "points"):
                style["linewidth"] += min(_WIDER * _num_over(panel, number, curve), _MOST_WIDER)
            _draw_curve(frame, curve, values / unit, style, _MARKERS[number % len(_MARKERS)])
    first, last = (min(values[0] for values in places) / unit, max(values[-1] for values in places) / unit)
    margin = 0.015 * (last - first or 1.0)
    frame.set_xlim(first - margin, last + margin)
    _set_scale(frame, panel)
    frame.set_xlabel(label, color=INK)
    frame.grid(color=INK, alpha=0.12, linewidth=0.6)
    frame.spines[["top", "right"]].set_visible(False)
    frame.spines[["left", "bottom"]].set_color(INK)
    frame.tick_params(colors=INK, labelsize=8.5, labelleft=True)
    frame.yaxis.offsetText.set_color(INK)


def _draw_curve(frame: Any, curve: Curve, values: Floats, style: dict[str, Any], marker: str) -> None:
    if curve.look == "marks":
        frame.plot(
            values[curve.places], np.full(len(curve.places), 0.02), transform=frame.get_xaxis_transform(), **style
        )
        return
    if curve.look == "points":
        style |= {"marker": marker, "markevery": -(-len(curve.places) // _MARKED_POINTS) or 1}
        if curve.errors is not None:
            frame.errorbar(values[curve.places], curve.values, yerr=curve.errors, capsize=2.0, **style)
            return
    frame.plot(values[curve.places], curve.values, drawstyle="steps-pre" if curve.is_stepped else "default", **style)


def _set_scale(frame: Any, panel: Panel) -> None:
    """Fit the scale to all curves except the faint ones, whose single steps may be outliers."""
    fitted = [curve for curves in panel.curves for curve in curves if curve.look not in ("faint", "marks")]
    ends = [
        curve.values + sign * (0.0 if curve.errors is None else curve.errors) for curve in fitted for sign in (-1, 1)
    ]
    values = np.concatenate([*ends, [0.0] if panel.from_zero else []])
    values = values[np.isfinite(values)]
    if len(values):
        low, high = float(values.min()), float(values.max())
        room = 0.05 * (high - low or abs(high) or 1.0)
        frame.set_ylim(low - room * (0.4 if panel.from_zero else 1.0), high + room)


def _legend(figure: Any, histories: Sequence[RunHistory]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linewidth=1.6, marker=_MARKERS[number % len(_MARKERS)], markersize=4.0, **_style(number))
        for number in range(len(histories))
    ]
    names = [
        f"\u200a{_literal(history.name)}" for history in histories
    ]  # matplotlib leaves out names that start with _
    widest_inches = _NAME_INCHES + _LETTER_INCHES * max(map(len, names))
    ncols = max(1, min(len(names), 4, int(figure.get_figwidth() / widest_inches)))
    legend = figure.legend(
        handles, names, loc="outside upper left", ncols=ncols, frameon=False, labelcolor=INK, fontsize=9.5
    )
    legend.set_in_layout(True)


def _literal(text: str) -> str:
    """Text without formulas: dollar signs are escaped."""
    return text.replace("$", r"\$")
