"""The figure: eta over cost with the break-even line, and loss over FLOPs with dense runs of all lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .plan import DENSE
from .summary import SettingSummary

_COLOURS = {
    "blocks": ("#0072B2", "blocks of 16"),
    "single": ("#D55E00", "single tokens"),
    "": ("#777777", "other methods"),
}
"""The colour of arms whose names begin so, and what the legend calls them"""
_PLAIN_ARM = re.compile("(blocks16|single)(-k16)?")
"""Arms that their colour and marker say all about; others have their names beside them"""
_INK = "#202124"
_MARKERS = "osD^vPX*"


def draw(settings: Mapping[str, SettingSummary], path: Path) -> None:
    """Write the figure; settings without dense runs of several lengths are omitted."""
    from matplotlib.figure import Figure

    shown = {name: setting for name, setting in settings.items() if setting.dense_curve is not None}
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_eta(left, shown)
    if shown:
        _draw_losses(right, next(iter(shown.values())))
    figure.savefig(path, dpi=160, metadata={"Software": None})


def _colour(arm: str) -> str:
    return next(colour for start, (colour, _) in _COLOURS.items() if arm.startswith(start))


def _name(axes: Any, arm: str, place: tuple[float, float], others: list[tuple[float, float]]) -> None:
    """Write the arm's name beside its point: to the left if another named point is near on the right."""
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    meets = any(
        0 <= x - place[0] < 0.2 * (high - low) and abs(place[1] - y) < 0.025 * (top - bottom) for x, y in others
    )
    offset, side = ((-5, 3), "right") if meets else ((5, 3), "left")
    axes.annotate(arm, place, offset, textcoords="offset points", fontsize=6.5, ha=side)
    others.append(place)


def _draw_eta(axes: Any, settings: Mapping[str, SettingSummary]) -> None:
    lowest = highest = 1.0
    named: dict[str, list[tuple[float, float]]] = {}
    for number, setting in enumerate(settings.values()):
        for arm in setting.arms:
            found = setting.summary(arm)
            if found.eta is None:
                continue
            place = (found.cost, found.eta.mean)
            lowest, highest = min(lowest, *place), max(highest, *place)
            axes.errorbar(
                found.cost,
                found.eta.mean,
                yerr=found.eta.standard_error,
                color=_colour(arm),
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=6,
                capsize=2,
                linestyle="none",
            )
            if not _PLAIN_ARM.fullmatch(arm):
                named.setdefault(arm, []).append(place)
    ends = (lowest - 0.05, 1.1)
    axes.plot(ends, ends, color=_INK, linewidth=0.8)
    axes.fill_between(ends, ends, highest + 0.1, color="#009E73", alpha=0.07, linewidth=0)
    axes.text(0.03, 0.95, "pays", transform=axes.transAxes, color="#009E73", fontweight="bold")
    axes.text(0.86, 0.05, "does not", transform=axes.transAxes, color=_INK)
    axes.set(xlabel="cost: share of dense's FLOPs", ylabel="η: share of dense's steps with the same loss", xlim=ends)
    axes.set_ylim(lowest - 0.05, highest + 0.1)
    places: list[tuple[float, float]] = []
    for arm, its in named.items():
        for place in its:
            _name(axes, arm, place, places)
    handles = [axes.plot([], [], color=colour, linewidth=5, label=name)[0] for colour, name in _COLOURS.values()]
    handles += [
        axes.plot([], [], color=_INK, marker=_MARKERS[number % len(_MARKERS)], linestyle="none", label=name)[0]
        for number, name in enumerate(settings)
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.09), fontsize=7, frameon=False)


def _draw_losses(axes: Any, setting: SettingSummary) -> None:
    points = setting.dense_points()
    axes.plot(
        [flops / 1e12 for flops, _ in points],
        [loss for _, loss in points],
        color=_INK,
        marker="o",
        markersize=4,
        label="dense, planned to end there",
    )
    arms = [arm for arm in setting.arms if arm != DENSE]
    places = [(setting.flops(arm) / 1e12, setting.mean_loss(arm)) for arm in arms]
    for arm, place in zip(arms, places, strict=True):
        axes.plot(*place, color=_colour(arm), marker="o", markersize=6, linestyle="none")
    named: list[tuple[float, float]] = []
    for arm, place in zip(arms, places, strict=True):
        _name(axes, arm, place, named)
    axes.set(xlabel="TFLOPs of the run", ylabel="held-out loss", title=setting.name)
    axes.legend(fontsize=7, frameon=False)
