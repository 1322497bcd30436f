"""How much a method keeps at each step: tokens per layer (random-LTD) or the chance that a layer runs (PLD).

    kept tokens                                         keep probability of the deepest layer
    s  |            ______________                      1     |*
       |          __|             exactly s from T          |  *
       |       __|                                          |    *  *
       |    __|   one granularity                           |          *   *   *   *
    r0 |___|                                          theta |
       +------------|------------- step                     +------------------------ step
                    T

Schedules are pure functions of the 0-based step: nothing to store, nothing to restore. They know neither layers'
weights nor batch sizes (``planner``), nor what a kept token costs (``accounting``). Kept tokens that shrink, stay or
follow a list are in ``token_schedules``. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from megatron.ltd.errors import UserError


class TokenSchedule(Protocol):
    """Kept tokens of a routed layer at every step."""

    def at(self, step: int) -> int:
        """Kept tokens at the 0-based ``step``."""
        ...

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """Runs of equal kept tokens over the first ``num_steps`` steps: ``(first_step, num_steps, kept_tokens)``.

        In order, without gaps, covering exactly ``num_steps``; two neighbours differ. The bounds are computed, not
        searched: a huge ``num_steps`` costs nothing.
        """
        ...


def check_kept_tokens(given: str, kept_tokens: int, seq_length: int, seq_length_name: str) -> None:
    """Raise ``UserError`` for kept tokens outside 1 to S; ``given`` is what the user typed, flag and value."""
    if seq_length < 1:
        raise UserError(f"--seq-length {seq_length}: a sample has at least one token; give 1 or more")
    if kept_tokens < 1:
        raise UserError(f"{given}: a layer keeps at least one token; give 1 or more")
    if kept_tokens > seq_length:
        raise UserError(
            f"{given} is above {seq_length_name} {seq_length}: "
            f"a layer cannot keep more tokens than there are; give at most {seq_length}"
        )


@dataclass(frozen=True)
class KeptTokensSchedule:
    """Kept tokens growing linearly with the step, in whole granularities.

        at(t) = min_kept_tokens + floor((seq_length - min_kept_tokens) * t / growth_steps), rounded down to a multiple
                of the granularity, for t < growth_steps; exactly seq_length from then on

    With ``growth_steps`` 0 every token is kept from the first step. All arithmetic is on integers.
    Source: random-LTD (Yao et al., 2022), its linear schedule ("MSLG").

    Args:
        min_kept_tokens: tokens a layer keeps at step 0; a multiple of the granularity.
        seq_length: tokens of a whole sample; need not be a multiple of the granularity (197 patches with 8 is fine).
        growth_steps: the step from which every token is kept.
        granularity: kept tokens below seq_length are multiples of this.
        flags: what the user calls min_kept_tokens, growth_steps and granularity.
        seq_length_name: what the user calls seq_length.

    Raises:
        UserError: a value out of range, or min_kept_tokens that is not a multiple of the granularity.
    """

    min_kept_tokens: int
    seq_length: int
    growth_steps: int
    granularity: int
    flags: tuple[str, str, str] = ("--ltd-min-kept-tokens", "--ltd-growth-steps", "--ltd-granularity")
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        check_kept_tokens(
            f"{self.flags[0]} {self.min_kept_tokens}", self.min_kept_tokens, self.seq_length, self.seq_length_name
        )
        if self.growth_steps < 0:
            raise UserError(
                f"{self.flags[1]} {self.growth_steps}: growth takes a number of steps; give 1 or more, "
                "or 0 to keep every token from the first step"
            )
        if self.granularity < 1:
            raise UserError(f"{self.flags[2]} {self.granularity}: kept tokens grow in whole steps; give 1 or more")
        if self.min_kept_tokens % self.granularity:
            below = self.min_kept_tokens // self.granularity * self.granularity
            fixes = [f"{kept}" for kept in (below, below + self.granularity) if 1 <= kept <= self.seq_length]
            raise UserError(
                f"{self.flags[2]} {self.granularity} does not divide {self.flags[0]} {self.min_kept_tokens}: "
                f"the schedule would go below it; give {' or '.join([*fixes, 'a granularity that divides it'])}"
            )

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        if step >= self.growth_steps:
            return self.seq_length
        grown_tokens = (self.seq_length - self.min_kept_tokens) * step // self.growth_steps
        return (self.min_kept_tokens + grown_tokens) // self.granularity * self.granularity

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: K tokens are first kept at step ceil((K - r0) * T / (s - r0))."""
        levels = range(self.min_kept_tokens, self.seq_length, self.granularity) if self.growth_steps else range(0)
        range_tokens = self.seq_length - self.min_kept_tokens
        for kept_tokens in levels:
            grown_tokens = kept_tokens - self.min_kept_tokens
            first_step = -(-grown_tokens * self.growth_steps // range_tokens)
            next_tokens = min(grown_tokens + self.granularity, range_tokens)
            next_first_step = -(-next_tokens * self.growth_steps // range_tokens)
            if first_step >= num_steps:
                return
            if next_first_step > first_step:
                yield first_step, min(next_first_step, num_steps) - first_step, kept_tokens
        first_full_step = self.growth_steps if levels else 0
        if first_full_step < num_steps:
            yield first_full_step, num_steps - first_full_step, self.seq_length

    def total_kept_tokens(self, num_steps: int) -> int:
        """Sum of ``at(step)`` over the first ``num_steps`` steps: a routed layer's tokens at one sample a step."""
        return sum(stage_steps * kept_tokens for _, stage_steps, kept_tokens in self.stages(num_steps))


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
