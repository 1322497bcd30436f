"""Loss curves of one or several runs, as a figure file.

    left   loss over the FLOPs that the run has computed
    right  the same loss over the seconds it has spent in training steps

A thin line is the training loss, smoothed; points are evaluations on held-out text. Without a window system and without
touching matplotlib's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.metrics import RunHistory

FORMATS = (".png", ".pdf", ".svg")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # told apart by colour-blind readers too
_MARKERS = "os^Dvp"
_FLOPS_SCALES = ((1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))
_SECONDS_SCALES = ((3600.0 * 2, 3600.0, "hours"), (60.0 * 10, 60.0, "minutes"), (0.0, 1.0, "seconds"))
_SMOOTHED_SHARE = 50  # the training loss is a running mean over this part of the run


def check_plot_path(path: Path) -> None:
    """Refuse a figure that could not be written, before any work. Raises ``UserError``."""
    if path.suffix not in FORMATS:
        raise UserError(f"--plot {path}: the name must end in {', '.join(FORMATS)}, which says what to write")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError(f'--plot {path} needs the package matplotlib: pip install "megatron-ltd[plot]"') from None


def plot_losses(histories: Sequence[RunHistory], path: Path) -> None:
    """Draw the loss of every run over FLOPs and over seconds into ``path``. Raises ``UserError``."""
    check_plot_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        loss_figure(histories).savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"--plot {path}: cannot be written ({error.strerror}); choose a folder that you own") from None


def loss_figure(histories: Sequence[RunHistory]) -> Any:
    """The matplotlib figure: over FLOPs to the left, over seconds to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    over_flops, over_seconds = figure.subplots(1, 2, sharey=True)
    flops_unit, flops_name = _flops_scale(max(history.flops[-1] for history in histories))
    seconds_unit, seconds_name = _seconds_scale(max(history.seconds[-1] for history in histories))
    for number, history in enumerate(histories):
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        _draw(over_flops, history, [flops / flops_unit for flops in history.flops], style)
        _draw(over_seconds, history, [seconds / seconds_unit for seconds in history.seconds], style)
    over_flops.set(xlabel=f"{flops_name} computed", ylabel="loss a token")
    over_seconds.set(xlabel=f"{seconds_name} in training steps")
    for axes in (over_flops, over_seconds):
        axes.set_xlim(left=0.0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    over_seconds.legend(title="points: held-out text\nlines: training, smoothed", frameon=False)
    return figure


def running_mean(values: Sequence[float | None], window: int) -> list[float]:
    """Mean of the last ``window`` values at each place, of fewer at the start; None (not finite) is left out."""
    means = []
    for place in range(len(values)):
        finite = [value for value in values[max(0, place - window + 1) : place + 1] if value is not None]
        means.append(sum(finite) / len(finite) if finite else float("nan"))
    return means


def _draw(axes: Any, history: RunHistory, xs: Sequence[float], style: dict[str, str]) -> None:
    losses = running_mean([step["loss"] for step in history.steps], max(1, len(xs) // _SMOOTHED_SHARE))
    axes.plot(xs, losses, color=style["color"], alpha=0.35, linewidth=1.0)
    evaluated = [line for line in history.validations if line["loss"] is not None]
    from_start = [0.0, *xs]  # an evaluation may have come before the first step
    axes.plot(
        [from_start[history.place_of(line["iteration"]) + 1] for line in evaluated],
        [line["loss"] for line in evaluated],
        label=history.name,
        linewidth=1.6,
        markersize=5.0,
        **style,
    )


def _flops_scale(largest: float) -> tuple[float, str]:
    return next(scale for scale in _FLOPS_SCALES if largest >= scale[0])


def _seconds_scale(largest: float) -> tuple[float, str]:
    return next((unit, name) for least, unit, name in _SECONDS_SCALES if largest >= least)
