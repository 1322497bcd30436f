"""The route of one microbatch through the layers, and how every layer gets it.

Megatron-Core's model and pipeline schedules pass only tensors between layers, so that the route of the current
microbatch is passed in a context variable:

    with use_route(route):            # the forward step of one microbatch
        output = model(tokens, ...)   # each layer asks current_route()

A layer that is recomputed in the backward pass runs while another microbatch may be current, possibly on another
thread. ``install`` wraps Megatron-Core's ``tensor_parallel.checkpoint`` once, so that a recomputed function runs under
the route of its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from megatron.ltd.methods.base import Method, Samples
from megatron.ltd.schedules.step_plan import StepPlan


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

    def keep_probability(self, layer_number: int) -> float:
        return self.plan.keep_probability[layer_number - 1]

    def executes(self, layer_number: int) -> bool:
        """Whether the layer computes this microbatch."""
        probability = self.keep_probability(layer_number)
        return probability == 1.0 or self.method.executes(self.step, self.microbatch, layer_number, probability)

    def kept_tokens(self, layer_number: int) -> Tensor | None:
        """Positions the layer computes on, [B, K] ascending, or None for all of them."""
        num_kept_tokens = self.plan.kept_tokens[layer_number - 1]
        if num_kept_tokens == self.plan.seq_length:
            return None
        kept_BK = self.method.select(self.samples, layer_number, num_kept_tokens)
        self.method.check_selection(kept_BK, self.samples, layer_number, num_kept_tokens)
        return kept_BK


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

    def routed_checkpoint(function: Callable[..., Any], distribute_saved_activations: bool, *args: Any) -> Any:
        route = current_route()

        def routed_function(*inputs: Any) -> Any:
            with use_route(route):
                return _without_parameters(function(*inputs))

        return checkpoint(routed_function, distribute_saved_activations, *args)

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

    if not getattr(tensor_parallel.checkpoint, "carries_route", False):
        tensor_parallel.checkpoint = _under_recorded_route(tensor_parallel.checkpoint)
