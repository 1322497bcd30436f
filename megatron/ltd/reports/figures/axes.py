"""The x axes of curves: steps, tokens, layer tokens, FLOPs or seconds, from the log of a run.

    place    0 ------- 1 ------- 2 ----- ... ----- n        0: before the first step, p: after step p of the log
    value    start     each axis maps every place to a value

A curve is a list of places and values, which is thinned once and drawn over any axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron.ltd.reports.metrics import RunHistory

Floats = NDArray[np.float64]

_Units = Sequence[tuple[float, float, str]]
"""From the largest: the least value that is shown in a unit, the unit, and its name; the last one serves all others."""
_COUNTS: _Units = (
    (1e12, 1e12, "trillion "), (1e9, 1e9, "billion "), (1e6, 1e6, "million "), (1e4, 1e3, "thousand "), (0.0, 1.0, ""),
)  # fmt: skip
_FLOPS: _Units = tuple((10.0**power, 10.0**power, f"{letter}FLOP") for power, letter in
                       zip(range(24, -1, -3), [*"YZEPTGMK", ""], strict=True))  # fmt: skip
_SECONDS: _Units = (
    (2 * 86400.0, 86400.0, "days"), (2 * 3600.0, 3600.0, "hours"), (600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"),
)  # fmt: skip


def column(history: RunHistory, name: str) -> Floats:
    """One field of every step [n]; NaN if a step does not have it, or it is null."""
    return np.array([step.get(name) for step in history.steps], dtype=np.float64)


@dataclass(frozen=True)
class Axis:
    """One x axis."""

    values: Callable[[RunHistory], Floats]
    """The value at each place of a run [n + 1]."""
    units: _Units
    thing: str
    """What follows the name of the unit in the label."""

    def unit(self, largest: float) -> tuple[float, str]:
        """For the largest value: the divisor of all values, and the label."""
        _, scale, name = next((found for found in self.units if largest >= found[0]), self.units[-1])
        return scale, f"{name}{self.thing}"


def _after_steps(values: Sequence[float] | Floats, start: float = 0.0) -> Floats:
    return np.concatenate([[start], np.asarray(values, dtype=np.float64)])


def _steps(history: RunHistory) -> Floats:
    return _after_steps(history.iterations, history.iterations[0] - 1)


def _tokens(history: RunHistory) -> Floats:
    return _consumed(history, column(history, "consumed_tokens"))


def _layer_tokens(history: RunHistory) -> Floats:
    """Divided by the number of layers, to compare them with tokens: they are equal in a dense run."""
    layers = column(history, "num_layers")
    return _consumed(history, column(history, "consumed_layer_tokens") / np.where(np.isnan(layers), 1.0, layers))


def _consumed(history: RunHistory, after: Floats) -> Floats:
    """A log that starts in the middle of a run does not tell what was consumed before its first step."""
    return _after_steps(after, 0.0 if history.iterations[0] == 1 else float(after[0]))


AXES: dict[str, Axis] = {
    "steps": Axis(_steps, _COUNTS, "steps"),
    "tokens": Axis(_tokens, _COUNTS, "tokens"),
    "layer-tokens": Axis(_layer_tokens, _COUNTS, "layer tokens / layers"),
    "flops": Axis(lambda history: _after_steps([float(flops) for flops in history.flops]), _FLOPS, " computed"),
    "seconds": Axis(lambda history: _after_steps(history.seconds), _SECONDS, " in training steps"),
}


def places_of(history: RunHistory, lines: Sequence[Any]) -> NDArray[np.int64]:
    """The place of each validation or scores line."""
    return np.array([history.place_of(line["iteration"]) + 1 for line in lines], dtype=np.int64)
