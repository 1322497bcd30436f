"""The protocol of a method: the plan of every step, and the tokens or layers that each microbatch drops.

    Method       plan(step) -> StepPlan; select(...) -> kept positions; executes(...) -> whether a layer is computed
                 observe(...) -> what the method has learned from the losses of a step; most methods learn nothing
    Composed     a method that drops tokens and one that drops layers, in one run
    Entry        a method in the registry: its flags, and how to build it from them

Everything is a pure function of its arguments. This module imports no torch: a plan is printed before any device is
initialised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from megatron.ltd.errors import UserError
from megatron.ltd.format import format_ranges
from megatron.ltd.schedules.step_plan import StepPlan

if TYPE_CHECKING:
    from torch import Tensor


METHOD = "method"
"""The id of the setting that says which methods a run has: "dense", a name in the registry, or two joined by "+"."""


@dataclass(frozen=True)
class Samples:
    """The samples of a microbatch, as far as a method needs them; a workload's microbatch adds the model's inputs."""

    sample_ids_B: Tensor
    """int64, the position of each sample in the run's global order."""
    whole_tokens_BS: Tensor | None = None
    """int64, all tokens of the samples under any parallel layout; None unless the method ``observes``."""
    learned_V: Tensor | None = None
    """What the method has learned about each token id; None unless the method ``observes``."""
    padding_BS: Tensor | None = None
    """bool, True where a sample is padded, all S positions; None if samples have no padding."""


class Method(Protocol):
    """A way to compute less."""

    facts: ModelFacts

    @property
    def name(self) -> str:
        """The method's name in the header and the log."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the plan and the draw, by id, ``METHOD`` first; equal settings compute the same.

        The id of a flag's setting is the flag's field. None marks a setting without effect, and equals a missing one:
        a setting that a new flag adds must be None if the flag is not used, so that older checkpoints continue.
        """
        ...

    def plan(self, step: int) -> StepPlan:
        """What the 0-based ``step`` computes."""
        ...

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        """Ranges of steps with one plan, as (first step, number of steps, plan): in order, without gaps, to the end."""
        ...

    def select(self, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int) -> Tensor:
        """The positions that layers compute, int64 [L, B, kept_tokens], ascending and distinct in each row.

        L is the number of ``layer_numbers``, or 1 if all of them keep the same tokens. They are 1-based and global: the
        first layer of the model is 1 on every pipeline stage. Called once a microbatch and chunk of the model, with all
        layers that keep ``kept_tokens``, which is below S. Each of the ``facts.sequence_parts`` equal parts of the
        sequence must keep the same number of tokens, because each is on another process. Nothing here should make a
        tensor from Python numbers or read one: either waits for a GPU.
        """
        raise AssertionError(f"{self.name} keeps every token")

    def check_selection(
        self, kept_LBK: Tensor, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int
    ) -> None:
        """Raise ``AssertionError`` if ``kept_LBK`` breaks a rule of ``select``; values are checked on the CPU only."""
        many = len(layer_numbers) > 1
        layers = f"layer{'s' * many} {format_ranges(layer_numbers)}"
        by = f"{self.name}, {layers}: select must return"
        expected = (len(layer_numbers), len(samples.sample_ids_B), kept_tokens)
        right_shape = tuple(kept_LBK.shape) in (expected, (1, *expected[1:]))
        assert right_shape, f"{by} shape {expected}, not {tuple(kept_LBK.shape)}"
        assert str(kept_LBK.dtype) == "torch.int64", f"{by} int64, not {kept_LBK.dtype}"
        if kept_LBK.is_cpu:
            self.check_positions(kept_LBK, by)

    def check_positions(self, kept_LBK: Tensor, by: str) -> None:
        """The values' part of ``check_selection``; ``by`` begins its messages."""
        kept_tokens = kept_LBK.shape[2]
        assert (kept_LBK[..., 1:] > kept_LBK[..., :-1]).all(), f"{by} ascending, distinct positions in each row"
        parts, seq_length = self.facts.sequence_parts, self.facts.seq_length
        for part, kept_LBP in enumerate(kept_LBK.chunk(parts, dim=2)):
            first, end = part * seq_length // parts, (part + 1) * seq_length // parts
            inside = kept_LBP.shape[2] * parts == kept_tokens and (first <= kept_LBP).all() and (kept_LBP < end).all()
            where = "positions from 0 to" if parts == 1 else f"{kept_tokens}/{parts} of the positions {first} to"
            assert inside, f"{by} {where} {end - 1}"

    def executes(self, step: int, microbatch: int, layer_number: int, keep_probability: float) -> bool:
        """Whether the layer, 1-based, is computed for microbatch number ``microbatch`` of the step.

        Called only if ``keep_probability`` is below 1. The answer must not depend on the samples: all ranks, data
        parallel ones too, compute the microbatch of a number at the same time and skip a layer together, because they
        share collectives.
        """
        raise AssertionError(f"{self.name} computes every layer")

    @property
    def observes(self) -> bool:
        """Whether the method learns from the losses of each step, and selects tokens by what it has learned."""
        return False

    def initial_state(self, vocab_size: int | None) -> Tensor | None:
        """What the method has learned before the first step, [V] on the CPU; None unless it ``observes``.

        ``vocab_size`` is None for a workload whose tokens have no ids or no loss of their own. Raises ``UserError`` if
        the method needs them, and for ids outside the vocabulary.
        """
        return None

    def observe(self, learned_V: Tensor | None, losses_2V: Tensor | None) -> Tensor | None:
        """What the method has learned after a step: the hook by which a method observes training.

        ``losses_2V``, float64, is over the real tokens of the global batch: for each token id the sum of the losses at
        its positions, and their number. Both arguments are None unless the method ``observes``.
        """
        return learned_V


@dataclass(frozen=True)
class ModelFacts:
    """What a method knows about the model and the run that it is built for."""

    num_layers: int
    seq_length: int
    seed: int
    sequence_parts: int = 1
    """Equal parts into which context and sequence parallelism split the sequence; each keeps as many tokens."""
    seq_length_name: str = "--seq-length"
    """The name of ``seq_length`` in messages."""
    special_ids: tuple[int, ...] = ()
    """The tokenizer's special ids except padding, known once its files are read."""
    num_steps: int | None = None
    """Steps of the run, for defaults that are a share of them; None if the flags do not say, or no default needs it."""
    kernels: str = "torch"
    """Whose kernels draw, gather and write back kept tokens: "torch" or "triton"."""


@dataclass(frozen=True)
class Dense(Method):
    """No method: every layer computes every token."""

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
    def facts(self) -> ModelFacts:  # type: ignore[override]
        return self.routing.facts

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
        """A new stage starts wherever one of the two methods changes its plan."""
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

    def select(self, samples: Samples, layer_numbers: Sequence[int], kept_tokens: int) -> Tensor:
        return self.routing.select(samples, layer_numbers, kept_tokens)

    def executes(self, step: int, microbatch: int, layer_number: int, keep_probability: float) -> bool:
        return self.depth.executes(step, microbatch, layer_number, keep_probability)

    @property
    def observes(self) -> bool:
        return self.routing.observes

    def initial_state(self, vocab_size: int | None) -> Tensor | None:
        return self.routing.initial_state(vocab_size)

    def observe(self, learned_V: Tensor | None, losses_2V: Tensor | None) -> Tensor | None:
        return self.routing.observe(learned_V, losses_2V)


def _both(routing: StepPlan, depth: StepPlan) -> StepPlan:
    return replace(routing, keep_probability=depth.keep_probability)


Kind = Literal["routing", "depth"]


@dataclass(frozen=True)
class Entry:
    """One method in the registry."""

    kind: Kind
    """What the method drops: tokens ("routing") or layers ("depth"). A run has at most one method of each kind."""
    title: str
    """The name on screens; files hold the key in the registry."""
    flag: str
    """The switch that turns the method on."""
    config_class: type
    """The method's flags; ``config.enabled`` is True if the method is on."""
    build: Callable[[Any, ModelFacts], Method]

    @property
    def growth(self) -> str | None:
        """The field of ``config_class`` with the steps over which kept tokens grow; None without ``ScheduleFlags``.

        Then ``config.grows`` is True if the chosen schedule grows.
        """
        return getattr(self.config_class, "growth", None)

    def follows_length(self, config: Any) -> bool:
        """Whether the method is on, and flags that were not given follow from ``ModelFacts.num_steps``."""
        return config.enabled and getattr(config, "follows_length", False)


def build_method(entries: Mapping[str, Entry], configs: Mapping[str, Any], facts: ModelFacts) -> Method:
    """The method that the flags turn on: one, two composed, or ``Dense``. Raises ``UserError`` for two of a kind."""
    on = {name: entry for name, entry in entries.items() if configs[name].enabled}
    chosen: dict[Kind, Method] = {}
    for kind in ("routing", "depth"):
        names = [name for name, entry in on.items() if entry.kind == kind]
        if len(names) > 1:
            dropped = "tokens" if kind == "routing" else "layers"
            raise UserError(
                f"{' and '.join(on[name].flag for name in names)}: both choose which {dropped} to drop; use one of them"
            )
        for name in names:
            chosen[kind] = on[name].build(configs[name], facts)
    if len(chosen) == 2:
        return Composed(chosen["routing"], chosen["depth"])
    return next(iter(chosen.values()), Dense(facts))
