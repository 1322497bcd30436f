"""Checkpointing of activations, and sums and gathers whose backward pass is another one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor
from torch.distributed import ProcessGroup

from ..signatures import recorded
from ..unreached import unreached
from .fp8 import FP8GlobalStateManager, autocast

activation_recompute_forward = unreached("activation_recompute_forward")
get_all_rng_states = unreached("get_all_rng_states")


class CudaRNGStatesTracker:
    """The base of Megatron-Core's tracker of random streams, if it is asked to use Transformer Engine's."""

    def __init__(self) -> None:
        raise NotImplementedError("the stand-in has no tracker of random streams; Megatron-Core's own is used")


_firsts: list[bool] = []
"""Whether a block's first module is in a checkpointed function, in the order of the forward passes."""


def is_fp8_activation_recompute_enabled() -> bool:
    return FP8GlobalStateManager.records


@recorded("pytorch.distributed.checkpoint")
def checkpoint(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``function(*args, **rest)``, computed again in the backward pass, in fp8 if it was before."""
    rest, manager = dict(kwargs), FP8GlobalStateManager
    assert not rest.pop("distribute_saved_activations", False) and rest.pop("use_reentrant", True), kwargs
    rest.pop("tp_group", None)
    tracker = rest.pop("get_rng_state_tracker", lambda: None)()
    states = None if tracker is None else tracker.get_states()
    enabled, recipe = manager.enabled, manager.recipe

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():  # the forward pass
            manager.records = manager.enabled
            _firsts.append(manager.is_first)
            try:
                return function(*inputs, **rest)
            finally:
                manager.records = False
        current = None if tracker is None else tracker.get_states()
        if tracker is not None:
            tracker.set_states(states)
        manager.recomputes, manager.is_first = True, _firsts.pop(0)
        try:
            with autocast(enabled, recipe):
                return function(*inputs, **rest)
        finally:
            manager.recomputes = False
            if tracker is not None:
                tracker.set_states(current)

    return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=True)


def group_size(group: ProcessGroup | None) -> int:
    return 1 if group is None else group.size()


def keep(tensor: Tensor, group: ProcessGroup) -> Tensor:
    return tensor.view_as(tensor)


def add_up(tensor: Tensor, group: ProcessGroup) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def gather(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """The tensors of all ranks, one after another in the first dimension."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts)


def add_up_and_scatter(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """This rank's part, in the first dimension, of the sum over ranks."""
    return add_up(tensor, group).chunk(group.size())[group.rank()].contiguous()


Collective = Callable[[Tensor, ProcessGroup], Tensor]


class _Collective(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup, forwards: Collective, backwards: Collective) -> Tensor:
        ctx.group, ctx.backwards = group, backwards
        return forwards(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.backwards(gradient, ctx.group), None, None, None


def collective(tensor: Tensor, group: ProcessGroup | None, forwards: Collective, backwards: Collective) -> Tensor:
    """``forwards`` of the tensor, whose gradient is ``backwards`` of the output's; itself in a group of one."""
    return tensor if group_size(group) == 1 else _Collective.apply(tensor, group, forwards, backwards)
