"""The chance that a layer runs, by step and by depth: progressive layer dropping.

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

from megatron.ltd.errors import UserError


@dataclass(frozen=True)
class KeepProbabilitySchedule:
    """The chance that the deepest layer runs, falling from 1 to ``theta``: (1 - theta) * exp(-gamma * step) + theta.

    Or rising from ``theta`` to 1, the mirror image: 1 - (1 - theta) * exp(-gamma * step). Sources: progressive layer
    dropping (Zhang and He, 2020), equation 6; for depth that grows, RaPTr (arXiv:2402.05913).

    Args:
        theta: the limit, or where it rises from; above 0 and at most 1 (1 drops nothing).
        gamma: how fast it moves, per step; 100 / (steps of the run) in the paper.
        rising: the direction.

    Raises:
        UserError: a value out of range.
    """

    theta: float
    gamma: float
    rising: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.theta <= 1.0:
            raise UserError(f"--layer-drop-theta {self.theta}: a probability above 0 and at most 1; 0.5 is the paper's")
        if not 0.0 <= self.gamma < math.inf:
            raise UserError(
                f"--layer-drop-gamma {self.gamma}: a finite rate a step, 0 or more; 100 / train steps in the paper"
            )

    def at(self, step: int) -> float:
        """theta(t) at the 0-based ``step``: 1 at step 0, towards ``theta`` later; or from ``theta`` towards 1."""
        distance = (1.0 - self.theta) * math.exp(-self.gamma * step)
        return 1.0 - distance if self.rising else self.theta + distance


def layer_keep_probability(layer_number: int, num_layers: int, theta_t: float) -> float:
    """The chance that layer ``layer_number`` (1-based, of ``num_layers``) runs: 1 - layer_number / L * (1 - theta_t).

    Deeper layers run less often; the last one with probability ``theta_t``. Source: as ``KeepProbabilitySchedule``.
    """
    return 1.0 - layer_number / num_layers * (1.0 - theta_t)


def keep_probabilities(num_layers: int, theta_t: float, by_depth: str) -> tuple[float, ...]:
    """The chance that each layer runs, first layer first; the last one's is ``theta_t``.

    ``by_depth`` is "linear" (``layer_keep_probability``), "uniform" (``theta_t`` for all) or "exponential"
    (theta_t^(layer_number / L)).
    """
    at_depth: dict[str, Callable[[int], float]] = {
        "linear": lambda layer_number: layer_keep_probability(layer_number, num_layers, theta_t),
        "uniform": lambda layer_number: theta_t,
        "exponential": lambda layer_number: theta_t ** (layer_number / num_layers),
    }
    return tuple(map(at_depth[by_depth], range(1, num_layers + 1)))
