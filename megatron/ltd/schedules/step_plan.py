"""What one step computes: kept tokens and keep probability of every layer.

One frozen ``StepPlan`` is passed from the method to model, accounting and log, so that what was computed, what was
logged and what the learning rate counted cannot differ. No torch here: plans are printed before any device is
initialised.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class LayerWork(NamedTuple):
    """What one layer computes: layers with equal work cost the same."""

    kept_tokens: int
    keep_probability: float
    attends_to_all: bool
    """Whether the kept tokens attend to every token."""


@dataclass(frozen=True)
class StepPlan:
    """What one step computes. Index 0 of a tuple is layer number 1."""

    seq_length: int
    kept_tokens: tuple[int, ...]
    """Tokens of a sample that each layer computes."""
    keep_probability: tuple[float, ...]
    """Probability that each layer is computed."""
    entry_layers: frozenset[int] = frozenset()
    """Numbers of the layers whose kept tokens attend to every token, kept or not."""

    @classmethod
    def dense(cls, seq_length: int, num_layers: int) -> StepPlan:
        return cls(seq_length, (seq_length,) * num_layers, (1.0,) * num_layers)

    @cached_property
    def work(self) -> Counter[LayerWork]:
        """The number of layers with each amount of work."""
        attends_to_all = [False] * len(self.kept_tokens)
        for layer_number in self.entry_layers:
            attends_to_all[layer_number - 1] = True
        return Counter(map(LayerWork, self.kept_tokens, self.keep_probability, attends_to_all))

    @property
    def min_kept_tokens(self) -> int:
        """Kept tokens of the layer that keeps the fewest, for the log."""
        return min(self.kept_tokens)

    @property
    def mean_depth(self) -> float:
        """Expected number of layers computed per microbatch."""
        return sum(self.keep_probability)
