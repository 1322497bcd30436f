"""What a method is: a plan for every step, and a choice of tokens, or of layers, for every microbatch.

    Method       plan(step) -> StepPlan; select(...) -> kept positions; runs(...) -> does the layer run; all pure
                 one that chooses by past losses also says what it learns of them; others keep what it has learned
    Composed     a method that drops tokens and one that drops layers, together
    registry     name -> (its flags, how to build it); one entry buys a method the command line and the tests

No torch here: the planner reads plans before any device is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from megatron.ltd.errors import UserError
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from torch import Tensor


METHOD = "method"
"""The id of the setting that says which methods a run has: "dense", a name in the registry, or two joined by "+"."""


@dataclass(frozen=True)
class Samples:
    """The samples of a microbatch, as a method that chooses among their tokens sees them."""

    ids_B: Tensor
    """int64, each sample's place in the run's global order."""
    tokens_BS: Tensor | None = None
    """int64, whole; for a method that ``learns``."""
    learned_V: Tensor | None = None
    """What that has learned of each token id."""
    padding_BS: Tensor | None = None
    """bool, whole, True where there is padding; None where there is none."""


class Method(Protocol):
    """A way to compute less. Everything a method does is a pure function of its arguments."""

    @property
    def name(self) -> str:
        """What a header and a log call it."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """By id, what decides its plan and its draw, ``METHOD`` first: equal for two runs that compute alike.

        Where a flag says it the id is the flag's field. None is a setting of no use, and equal to one that is missing:
        what a new flag adds must be None where it is not used, so that older checkpoints continue.
        """
        ...

    def plan(self, step: int) -> StepPlan:
        """What the 0-based ``step`` computes."""
        ...

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        """Runs of steps with equal plans: (first step, steps, plan), in order, gapless, covering ``num_steps``."""
        ...

    def select(self, samples: Samples, layer_number: int, kept_tokens: int) -> Tensor:
        """Positions that the layer keeps, int64 [B, K], ascending in each row. Asked where K is below S."""
        raise AssertionError(f"{self.name} keeps every token, so nobody asks which")

    def runs(self, step: int, microbatch: int, layer_number: int, keep_probability: float) -> bool:
        """Whether the layer runs on the microbatch of this number in the step. Asked where it may not.

        Ranks that share a collective, data-parallel ones too, compute the microbatch of a number at the same time, and
        must skip alike: which samples it holds has no say.
        """
        raise AssertionError(f"{self.name} runs every layer, so nobody asks which")

    @property
    def learns(self) -> bool:
        """Whether it chooses tokens by what it has learned of each id of the vocabulary."""
        return False

    def unlearned(self, vocab_size: int) -> Tensor:
        """What it knows before the first step, [V] on the CPU. Raises ``UserError`` for ids outside the vocabulary."""
        raise AssertionError(f"{self.name} learns nothing")

    def learn(self, learned_V: Tensor, loss_sums_V: Tensor, counts_V: Tensor) -> Tensor:
        """What it knows after a step: a new [V].

        ``loss_sums_V`` and ``counts_V``, float64 [V], are over the real tokens of the global batch: the loss at each
        token's position, by the token's id.
        """
        raise AssertionError(f"{self.name} learns nothing")


@dataclass(frozen=True)
class ModelFacts:
    """What a method may know of the model it is built for."""

    num_layers: int
    seq_length: int
    seed: int
    sequence_runs: int = 1
    """Equal runs that context and sequence parallelism cut the sequence in; each must keep the same number."""
    seq_length_name: str = "--seq-length"
    """What the user calls ``seq_length``."""
    special_ids: tuple[int, ...] = ()
    """Token ids that stand for no text, padding aside, where the tokenizer has such. Known once its files are read."""


@dataclass(frozen=True)
class Dense(Method):
    """No method: every layer computes on every token."""

    facts: ModelFacts
    name: str = "dense"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {METHOD: self.name}

    def plan(self, step: int) -> StepPlan:
        return StepPlan.dense(self.facts.seq_length, self.facts.num_layers)

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        yield 0, num_steps, self.plan(0)


@dataclass(frozen=True)
class Composed(Method):
    """A routing method, which drops tokens, and a depth method, which drops layers, in one run."""

    routing: Method
    depth: Method

    @property
    def name(self) -> str:
        return f"{self.routing.name} + {self.depth.name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        methods = "+".join(str(method.settings[METHOD]) for method in (self.routing, self.depth))
        return {**self.routing.settings, **self.depth.settings, METHOD: methods}

    def plan(self, step: int) -> StepPlan:
        return _both(self.routing.plan(step), self.depth.plan(step))

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        """Cut wherever either of the two changes."""
        depth_stages = self.depth.stages(num_steps)
        step, depth_end = 0, 0
        for first_step, steps, routing_plan in self.routing.stages(num_steps):
            while step < first_step + steps:
                if step == depth_end:
                    depth_first, depth_steps, depth_plan = next(depth_stages)
                    depth_end = depth_first + depth_steps
                end = min(first_step + steps, depth_end)
                yield step, end - step, _both(routing_plan, depth_plan)
                step = end

    def select(self, samples: Samples, layer_number: int, kept_tokens: int) -> Tensor:
        """The routing method's."""
        return self.routing.select(samples, layer_number, kept_tokens)

    def runs(self, step: int, microbatch: int, layer_number: int, keep_probability: float) -> bool:
        return self.depth.runs(step, microbatch, layer_number, keep_probability)

    @property
    def learns(self) -> bool:
        return self.routing.learns

    def unlearned(self, vocab_size: int) -> Tensor:
        return self.routing.unlearned(vocab_size)

    def learn(self, learned_V: Tensor, loss_sums_V: Tensor, counts_V: Tensor) -> Tensor:
        return self.routing.learn(learned_V, loss_sums_V, counts_V)


def _both(routing: StepPlan, depth: StepPlan) -> StepPlan:
    return replace(routing, keep_probability=depth.keep_probability)


Kind = Literal["routing", "depth"]


@dataclass(frozen=True)
class Entry:
    """One method in the registry."""

    kind: Kind
    """What it drops: tokens ("routing") or layers ("depth"). A run has at most one of each."""
    title: str
    """What a screen calls it; files hold its name in the registry."""
    flag: str
    """The switch that turns it on."""
    config_class: type
    """Its flags; ``config.enabled`` says whether the user switched the method on."""
    build: Callable[[Any, ModelFacts], Method]
    growth: str | None = None
    """The setting in ``config_class`` that says how many steps kept tokens grow over; None where there is none.

    Then ``config.grows`` says whether the schedule that the user chose grows.
    """


def build_method(entries: Mapping[str, Entry], configs: Mapping[str, Any], facts: ModelFacts) -> Method:
    """What the flags switch on: one method, two that compose, or ``Dense``. Raises ``UserError`` for two of a kind."""
    on = {name: entry for name, entry in entries.items() if configs[name].enabled}
    chosen: dict[Kind, Method] = {}
    for kind in ("routing", "depth"):
        names = [name for name, entry in on.items() if entry.kind == kind]
        if len(names) > 1:
            dropped = "tokens" if kind == "routing" else "layers"
            raise UserError(
                f"{' and '.join(on[name].flag for name in names)} are both on: each says which {dropped} to drop; "
                "keep one"
            )
        for name in names:
            chosen[kind] = on[name].build(configs[name], facts)
    if len(chosen) == 2:
        return Composed(chosen["routing"], chosen["depth"])
    return next(iter(chosen.values()), Dense(facts))
