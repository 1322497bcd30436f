"""What one step computes: kept tokens and keep probability of every layer.

The one frozen ``StepPlan`` goes from the method through model, accounting and log, so that what ran, what was logged
and what the learning rate counted cannot disagree. No torch here: the planner reads plans before any device is touched.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepPlan:
    """What one step computes. Index 0 of a tuple is layer number 1."""

    seq_length: int
    kept_tokens: tuple[int, ...]
    """Tokens a sample that each layer computes on."""
    keep_probability: tuple[float, ...]
    """Probability that each layer runs at all."""
    entry_layers: frozenset[int] = frozenset()
    """Numbers of the layers whose kept tokens attend to every token, kept or not."""

    @classmethod
    def dense(cls, seq_length: int, num_layers: int) -> StepPlan:
        return cls(seq_length, (seq_length,) * num_layers, (1.0,) * num_layers)

    @property
    def min_kept_tokens(self) -> int:
        """Kept tokens of the layer that keeps fewest: the figure a log line shows."""
        return min(self.kept_tokens)

    @property
    def mean_depth(self) -> float:
        """Layers that run of each microbatch, on average."""
        return sum(self.keep_probability)
