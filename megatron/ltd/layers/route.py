"""The route of one microbatch through the layers, and how every layer gets it.

Megatron-Core's model and pipeline schedules pass only tensors between layers, so that the route of the current
microbatch is passed in a context variable:

    with use_route(route):            # the forward step of one microbatch
        output = model(tokens, ...)   # each layer asks current_route()

The tokens of all routed layers that a process holds are drawn together, when the first of them asks, and kept by the
route: a layer costs no kernels for its draw, and recomputation uses the tokens of the forward pass.

A layer that is recomputed in the backward pass runs while another microbatch may be current, possibly on another
thread. ``install`` wraps Megatron-Core's ``tensor_parallel.checkpoint``, and its ``te_checkpoint`` for fp8, once, so
that a recomputed function runs under the route of its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from megatron.ltd.methods.base import Method, Samples
from megatron.ltd.routing.gather_scatter import flat_rows
from megatron.ltd.routing.sequence_shard import SequenceShard
from megatron.ltd.schedules.step_plan import StepPlan


@dataclass(frozen=True)
class Place:
    """What a chunk of the model holds."""

    layers: range
    """Layer numbers."""
    own_shard: SequenceShard
    """The part of the sequence between layers."""
    attention_shard: SequenceShard
    """The part inside attention, which gathers what sequence parallelism splits."""


@dataclass(frozen=True)
class KeptTokens:
    """The tokens that one layer keeps, int64 [B, K] ascending, and where a chunk has them."""

    kept_BK: Tensor
    """Positions in the whole sequence."""
    own_BK: Tensor
    """Positions in the chunk's ``own_shard``."""
    attending_BK: Tensor
    """Positions in its ``attention_shard``."""
    rows: Tensor
    """``flat_rows(own_BK)``."""


@dataclass(frozen=True)
class Route:
    """One microbatch: the plan of its step, its samples, and the method that selects their tokens."""

    plan: StepPlan
    method: Method
    samples: Samples
    step: int = 0
    """0-based."""
    microbatch: int = 0
    """Its number in the step, on its data-parallel rank."""
    _drawn: dict[Place, dict[int, KeptTokens]] = field(default_factory=dict, compare=False, repr=False)

    def keep_probability(self, layer_number: int) -> float:
        return self.plan.keep_probability[layer_number - 1]

    def executes(self, layer_number: int) -> bool:
        """Whether the layer computes this microbatch."""
        probability = self.keep_probability(layer_number)
        return probability == 1.0 or self.method.executes(self.step, self.microbatch, layer_number, probability)

    def kept_tokens(self, layer_number: int, place: Place | None = None) -> KeptTokens | None:
        """The tokens that the layer computes, or None for all of them; ``place`` is its chunk, None the whole model."""
        if self.plan.kept_tokens[layer_number - 1] == self.plan.seq_length:
            return None
        if place is None:
            whole = SequenceShard.of(0, 1)
            place = Place(range(1, len(self.plan.kept_tokens) + 1), whole, whole)
        if place not in self._drawn:
            self._drawn[place] = self._draw(place)
        return self._drawn[place][layer_number]

    def _draw(self, place: Place) -> dict[int, KeptTokens]:
        """The kept tokens of the chunk's routed layers, by layer number."""
        seq_length = self.plan.seq_length
        by_amount: dict[int, list[int]] = {}
        for layer_number in place.layers:
            by_amount.setdefault(self.plan.kept_tokens[layer_number - 1], []).append(layer_number)
        by_amount.pop(seq_length, None)
        drawn: dict[int, KeptTokens] = {}
        for amount, layer_numbers in by_amount.items():
            kept_LBK = self.method.select(self.samples, layer_numbers, amount)
            self.method.check_selection(kept_LBK, self.samples, layer_numbers, amount)
            own_LBK, attending_LBK = (
                shard.local_kept(kept_LBK, seq_length) for shard in (place.own_shard, place.attention_shard)
            )
            tensors = zip(kept_LBK, own_LBK, attending_LBK, flat_rows(own_LBK), strict=True)
            of_layers = [KeptTokens(*of_layer) for of_layer in tensors]
            drawn |= zip(layer_numbers, of_layers * (len(layer_numbers) // len(of_layers)), strict=True)
        return drawn


_current_route: ContextVar[Route | None] = ContextVar("route", default=None)


def current_route() -> Route | None:
    """The route of the microbatch being computed, or None outside training steps (every token is kept)."""
    return _current_route.get()


@contextmanager
def use_route(route: Route | None) -> Iterator[None]:
    """Make ``route`` the current one for the layers called inside the block."""
    token = _current_route.set(route)
    try:
        yield
    finally:
        _current_route.reset(token)


def _under_recorded_route(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """``checkpoint`` whose function runs, when it is recomputed, under the route of its forward pass."""

    def routed_checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        route = current_route()

        def routed_function(*inputs: Any, **more: Any) -> Any:
            with use_route(route):
                return _without_parameters(function(*inputs, **more))

        return checkpoint(routed_function, *args, **kwargs)

    routed_checkpoint.carries_route = True  # type: ignore[attr-defined]
    return routed_checkpoint


def _without_parameters(outputs: Any) -> Any:
    """``outputs`` with copies of parameters, such as the bias that Megatron-Core's MLP returns.

    A parameter would become an output of the checkpoint, and its gradient would request the recomputation again,
    without end.
    """
    if isinstance(outputs, tuple):
        return tuple(_without_parameters(output) for output in outputs)
    return outputs.clone() if isinstance(outputs, Parameter) else outputs


def install() -> None:
    """Wrap Megatron-Core's activation checkpointing. A second call does nothing."""
    from megatron.core import tensor_parallel
    from megatron.core.extensions import transformer_engine
    from megatron.core.transformer import transformer_block

    if not getattr(tensor_parallel.checkpoint, "carries_route", False):
        tensor_parallel.checkpoint = _under_recorded_route(tensor_parallel.checkpoint)
        with_fp8 = _under_recorded_route(transformer_engine.te_checkpoint)
        transformer_engine.te_checkpoint = transformer_block.te_checkpoint = with_fp8
