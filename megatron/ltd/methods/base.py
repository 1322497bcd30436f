"""What a method is: a plan for every step, and a choice of tokens for every layer.

    StepPlan     what one step computes: kept tokens and keep probability of every layer
    Method       plan(step) -> StepPlan, select(...) -> kept positions; both pure
    registry     name -> (its flags, how to build it); one entry buys a method the command line and the tests

The one frozen ``StepPlan`` goes through model, accounting and log, so that what ran, what was logged and what the
learning rate counted cannot disagree. No torch here: the planner reads plans before any device is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StepPlan:
    """What one step computes. Index 0 of a tuple is layer number 1."""

    seq_length: int
    kept_tokens: tuple[int, ...]
    """Tokens a sample that each layer computes on."""
    keep_probability: tuple[float, ...]
    """Probability that each layer runs at all."""

    @classmethod
    def dense(cls, seq_length: int, num_layers: int) -> StepPlan:
        return cls(seq_length, (seq_length,) * num_layers, (1.0,) * num_layers)

    @property
    def min_kept_tokens(self) -> int:
        """Kept tokens of the layer that keeps fewest: the figure a log line shows."""
        return min(self.kept_tokens)


class Method(Protocol):
    """A way to compute less. Everything a method does is a pure function of its arguments."""

    @property
    def name(self) -> str:
        """What a header and a log call it."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """By flag, what decides its plan and its draw, "the method" first: equal for two runs that compute alike."""
        ...

    def plan(self, step: int) -> StepPlan:
        """What the 0-based ``step`` computes."""
        ...

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Runs of steps with equal plans: (first step, steps, kept tokens of each layer), covering ``num_steps``."""
        ...

    def select(self, sample_ids_B: Tensor, layer_number: int, kept_tokens: int) -> Tensor:
        """Positions that the layer keeps, int64 [B, K], ascending in each row."""
        ...


@dataclass(frozen=True)
class ModelFacts:
    """What a method may know of the model it is built for."""

    num_layers: int
    seq_length: int
    seed: int
    sequence_runs: int = 1
    """Equal runs that context and sequence parallelism cut the sequence in; each must keep the same number."""


@dataclass(frozen=True)
class Dense:
    """No method: every layer computes on every token."""

    facts: ModelFacts
    name: str = "dense"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"the method": self.name}

    def plan(self, step: int) -> StepPlan:
        return StepPlan.dense(self.facts.seq_length, self.facts.num_layers)

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        yield 0, num_steps, self.plan(0).kept_tokens

    def select(self, sample_ids_B: Tensor, layer_number: int, kept_tokens: int) -> Tensor:
        raise AssertionError("a dense plan keeps every token, so nobody asks which")


@dataclass(frozen=True)
class Entry:
    """One method in the registry."""

    config_class: type
    """Its flags; ``config.enabled`` says whether the user switched the method on."""
    build: Callable[[Any, ModelFacts], Method]


def build_method(entries: Mapping[str, Entry], configs: Mapping[str, Any], facts: ModelFacts) -> Method:
    """The method that the flags switch on, or ``Dense``."""
    for name, entry in entries.items():
        if configs[name].enabled:
            return entry.build(configs[name], facts)
    return Dense(facts)
