"""The figure: eta over cost with the break-even line, and loss over FLOPs with dense runs of all lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .plan import DENSE
from .summary import SettingSummary

_COLOURS = {"single": "#D55E00", "blocks": "#0072B2"}
_OTHER_COLOUR = "#777777"
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
    return next((colour for name, colour in _COLOURS.items() if arm.startswith(name)), _OTHER_COLOUR)


def _draw_eta(axes: Any, settings: Mapping[str, SettingSummary]) -> None:
    lowest = highest = 1.0
    places: list[tuple[float, float]] = []
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
            meets = any(abs(place[0] - x) < 0.1 and abs(place[1] - y) < 0.012 for x, y in places)
            offset, side = ((-5, 3), "right") if meets else ((5, 3), "left")
            axes.annotate(arm, place, offset, textcoords="offset points", fontsize=6.5, ha=side)
            places.append(place)
    ends = (lowest - 0.05, 1.05)
    axes.plot(ends, ends, color=_INK, linewidth=0.8)
    axes.fill_between(ends, ends, highest + 0.1, color="#009E73", alpha=0.07, linewidth=0)
    axes.text(0.03, 0.95, "pays", transform=axes.transAxes, color="#009E73", fontweight="bold")
    axes.text(0.86, 0.05, "does not", transform=axes.transAxes, color=_INK)
    axes.set(xlabel="cost: share of dense's FLOPs", ylabel="η: share of dense's steps with the same loss", xlim=ends)
    axes.set_ylim(lowest - 0.05, highest + 0.1)
    handles = [
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
    for arm in setting.arms:
        if arm == DENSE:
            continue
        flops, loss = setting.flops(arm) / 1e12, setting.mean_loss(arm)
        axes.plot(flops, loss, color=_colour(arm), marker="o", markersize=6, linestyle="none")
        axes.annotate(arm, (flops, loss), (5, 3), textcoords="offset points", fontsize=6.5)
    axes.set(xlabel="TFLOPs of the run", ylabel="held-out loss", title=setting.name)
    axes.legend(fontsize=7, frameon=False)
