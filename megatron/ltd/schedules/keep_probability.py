"""The probability that a layer is computed, by step and by depth: progressive layer dropping.

    keep probability of the deepest layer
    1     |*
          |  *
          |    *  *
          |          *   *   *   *
    theta |
          +------------------------ step

Pure functions of the 0-based step: nothing to store, nothing to restore. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class KeepProbabilitySchedule:
    """The keep probability of the deepest layer, from 1 to ``theta``: (1 - theta) * exp(-gamma * step) + theta.

    If ``rising``, from ``theta`` to 1: 1 - (1 - theta) * exp(-gamma * step). Sources: progressive layer dropping
    (Zhang and He, 2020), equation 6; for depth that grows, RaPTr (arXiv:2402.05913).

    Args:
        theta: the smallest keep probability, above 0 and at most 1 (1 drops nothing).
        gamma: rate of change per step, at least 0; 100 / (steps of the run) in the paper.
        rising: the direction.
    """

    theta: float
    gamma: float
    rising: bool = False

    def at(self, step: int) -> float:
        """theta(t) at the 0-based ``step``: from 1 at step 0 towards ``theta``, or from ``theta`` towards 1."""
        distance = (1.0 - self.theta) * math.exp(-self.gamma * step)
        return 1.0 - distance if self.rising else self.theta + distance


def layer_keep_probability(layer_number: int, num_layers: int, theta_t: float) -> float:
    """The keep probability of layer ``layer_number``, 1-based, of L layers: 1 - layer_number / L * (1 - theta_t).

    Deeper layers are computed less often, the last one with probability ``theta_t``. Source: as
    ``KeepProbabilitySchedule``.
    """
    return 1.0 - layer_number / num_layers * (1.0 - theta_t)


def keep_probabilities(num_layers: int, theta_t: float, by_depth: str) -> tuple[float, ...]:
    """The keep probabilities of all layers, first layer first.

    ``by_depth`` is "linear" (``layer_keep_probability``), "released" (the same of the layer before, which is 1 for the
    first layer: the paper's published code), "uniform" (``theta_t`` for all) or "exponential"
    (theta_t^(layer_number / L)).
    """
    at_depth: dict[str, Callable[[int], float]] = {
        "linear": lambda layer_number: layer_keep_probability(layer_number, num_layers, theta_t),
        "released": lambda layer_number: layer_keep_probability(layer_number - 1, num_layers, theta_t),
        "uniform": lambda layer_number: theta_t,
        "exponential": lambda layer_number: theta_t ** (layer_number / num_layers),
    }
    return tuple(map(at_depth[by_depth], range(1, num_layers + 1)))
