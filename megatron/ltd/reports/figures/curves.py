"""Curves of one run, with few points even for long runs.

    means    at up to MAX_POINTS places the mean of the last 1/50 of the run: a smoothed training loss. At the start it
             is the mean of at most the last 1/5 of the steps so far, so that it follows a loss that falls fast
    thinned  the places of the least and the greatest value of each bin, and both ends, so that peaks are kept

Values that are not finite (null in the log) are left out of means and curves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron.ltd.reports.figures.axes import Floats

MAX_POINTS = 1000
_SMOOTHED_SHARE, _SMOOTHED_SHARE_SO_FAR = 50, 5

Look = Literal["strong", "thin", "faint", "points", "marks"]


@dataclass(frozen=True)
class Curve:
    """Values at places of a run, see ``axes``, and their style.

    "points": a line with a point at each value. "marks": crosses at the bottom of the panel, whatever the values.
    """

    places: NDArray[np.int64]
    values: Floats
    look: Look
    errors: Floats | None = None
    """Standard errors of the values, if known."""
    is_stepped: bool = False
    """Whether each value is that of a whole step, so that the curve is a staircase."""


def window_steps(num_steps: int) -> int:
    """Steps of which ``means`` takes the mean at the end of a run of ``num_steps``."""
    return max(1, num_steps // _SMOOTHED_SHARE)


def means(values: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Places, and the mean of the last values at each; NaN if none of these is finite.

    ``values`` [n] are those of each step; at most ``MAX_POINTS`` places, evenly spaced, the last among them.
    """
    ends = np.unique(np.linspace(1, len(values), min(len(values), MAX_POINTS)).astype(np.int64))
    most = window_steps(len(values))
    firsts = ends - np.clip(ends // _SMOOTHED_SHARE_SO_FAR, 1, most)
    finite = np.isfinite(values)
    filled = np.where(finite, values, 0.0)
    # Each window is summed separately: differences of running sums lose their digits after a loss of 1e20.
    windows = list(zip(firsts, ends, strict=True))
    sums = np.array([filled[first:end].sum() for first, end in windows])
    counts = np.array([finite[first:end].sum() for first, end in windows])
    with np.errstate(invalid="ignore", divide="ignore"):
        return ends, sums / counts


def thinned(values: Floats, places: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], Floats]:
    """At most about ``MAX_POINTS`` of the finite values, with their places (default: those of steps, from 1).

    The first, the last, and the least and the greatest of each of ``MAX_POINTS`` / 2 bins.
    """
    if places is None:
        places = np.arange(1, len(values) + 1)
    finite = np.isfinite(values)
    places, values = places[finite], values[finite]
    if len(values) <= MAX_POINTS:
        return places, values
    bounds = np.linspace(0, len(values), MAX_POINTS // 2 + 1).astype(np.int64)
    chosen = {0, len(values) - 1}
    for first, end in zip(bounds, bounds[1:], strict=False):
        chosen |= {first + int(values[first:end].argmin()), first + int(values[first:end].argmax())}
    kept = np.array(sorted(chosen))
    return places[kept], values[kept]


def line(values: Floats, look: Look, *, is_stepped: bool = False) -> Curve:
    """A field of every step, thinned."""
    return Curve(*thinned(values), look, is_stepped=is_stepped)


def smoothed(values: Floats, look: Look) -> Curve:
    """The running mean of a field of every step."""
    return Curve(*means(values), look)


def marks(wrong: NDArray[np.bool_]) -> Curve:
    """Crosses at the steps where ``wrong`` is true, at most ``MAX_POINTS``."""
    places = np.flatnonzero(wrong) + 1
    places = places[:: -(-len(places) // MAX_POINTS) or 1]
    return Curve(places, np.zeros(len(places)), "marks")
