"""fp8: its blocks and its scales, as Transformer Engine finds them, but numbers are not rounded.

A run in fp8 therefore computes what one in bfloat16 does, and the rest is checked: sizes of products, one call of a
layer in a block of delayed scaling, reductions that all processes of a group must make together, and that a function
that is recomputed gets the values of its forward pass.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..signatures import recorded

_MANAGER = "pytorch.quantization.FP8GlobalStateManager"


class Scaling:
    """Of ``number`` tensors: the scale, and the largest values of the latest microbatches; row 0 is of this one."""

    def __init__(self, recipe: Any, number: int, largest: float) -> None:
        self.scale = torch.ones(number)
        self.amax_history = torch.zeros(recipe.amax_history_len, number)
        self.largest = largest / 2**recipe.margin
        self.algorithm = recipe.amax_compute_algo

    def see(self, position: int, values: Tensor) -> None:
        """Take note of the values of a tensor."""
        row = self.amax_history[0]
        row[position] = torch.maximum(row[position], values.detach().abs().amax().float())

    def update(self, latest: Tensor) -> None:
        """Scale by the ``latest`` row, reduced over processes; a tensor without values keeps its scale and history."""
        seen = latest != 0.0
        history = torch.cat((self.amax_history[1:], latest[None]))
        amax = history.amax(0) if self.algorithm == "max" else latest
        history[0] = 0.0
        self.amax_history.copy_(torch.where(seen, history, self.amax_history))
        self.scale.copy_(torch.where(seen & amax.isfinite(), self.largest / amax, self.scale))


class FP8GlobalStateManager:
    """The block of fp8 that is entered, if any, and the scales of all layers that have computed in one."""

    problem = ""
    """Why the GPU has no fp8; a test sets it."""
    enabled, recipe, group, is_first = False, None, None, False
    depth = blocks = num_reductions = 0
    recomputes = records = False
    """Whether a checkpointed function runs again; or for the first time, in fp8."""
    scalings: dict[tuple[bool, str], list[Scaling]] = {}
    arguments: dict[str, tuple[Any, Any]] = {}
    """Recipe and group, by key."""

    @classmethod
    def is_fp8_enabled(cls) -> bool:
        return cls.enabled

    @classmethod
    @recorded(f"{_MANAGER}.is_fp8_available")
    def is_fp8_available(cls) -> tuple[bool, str]:
        return not cls.problem, cls.problem

    @classmethod
    @recorded(f"{_MANAGER}.is_mxfp8_available")
    def is_mxfp8_available(cls) -> tuple[bool, str]:
        return not cls.problem, cls.problem

    @classmethod
    @recorded(f"{_MANAGER}.is_fp8_block_scaling_available")
    def is_fp8_block_scaling_available(cls) -> tuple[bool, str]:
        return not cls.problem, cls.problem

    @classmethod
    @recorded(f"{_MANAGER}.add_fp8_tensors_to_global_buffer")
    def add_fp8_tensors_to_global_buffer(cls, fp8_meta: dict[str, Any]) -> None:
        if not fp8_meta["recipe"].delayed() or "is_reduced" in fp8_meta:
            return
        fp8_meta["is_reduced"] = True
        key = f"{fp8_meta['recipe']}:{hash(fp8_meta['fp8_group'])}"
        for forward, name in ((True, "scaling_fwd"), (False, "scaling_bwd")):
            cls.scalings.setdefault((forward, key), []).append(fp8_meta[name])

    @classmethod
    def reduce_and_update(cls, *, forward: bool) -> None:
        """Find the scales of all layers, over the processes of their group."""
        for (is_forward, key), scalings in cls.scalings.items():
            if is_forward != forward:
                continue
            recipe, group = cls.arguments[key]
            latest = torch.cat([scaling.amax_history[0] for scaling in scalings])
            if recipe.reduce_amax and dist.is_initialized() and dist.get_world_size(group) > 1:
                dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=group)
            cls.num_reductions += 1
            for scaling, part in zip(scalings, latest.split([len(each.scale) for each in scalings]), strict=True):
                scaling.update(part)

    @classmethod
    def reset(cls) -> None:
        """Forget all layers."""
        cls.scalings, cls.arguments, cls.num_reductions = {}, {}, 0


@contextlib.contextmanager
def autocast(enabled: bool, recipe: Any, group: Any = None) -> Iterator[None]:
    """A block with fp8 or, inside one, without."""
    manager = FP8GlobalStateManager
    before = manager.enabled, manager.recipe, manager.group, manager.is_first
    manager.enabled, manager.recipe, manager.group = enabled, recipe, group
    if enabled:
        manager.arguments[f"{recipe}:{hash(group)}"] = recipe, group
    if manager.depth == 0:
        manager.is_first = True
        manager.blocks += 1
    manager.depth += 1
    try:
        yield
    finally:
        manager.enabled, manager.recipe, manager.group, manager.is_first = before
        manager.depth -= 1
        if enabled and manager.depth == 0 and torch.is_grad_enabled():
            manager.reduce_and_update(forward=True)


@recorded("pytorch.quantization.fp8_autocast")
def fp8_autocast(enabled: bool, fp8_recipe: Any, fp8_group: Any) -> contextlib.AbstractContextManager[None]:
    warnings.warn("fp8_autocast is deprecated and will be removed", DeprecationWarning, stacklevel=2)
    return autocast(enabled, fp8_recipe, fp8_group)


def check_sizes(recipe: Any, values: Tensor, weight: Tensor, *, gathers: bool) -> None:
    """That kernels can multiply these."""
    unit = 128 if gathers and recipe.kind() == "Float8BlockScaling" else recipe.unit
    tokens = math.prod(values.shape[:-1])
    assert tokens % unit == 0 and values.shape[-1] % unit == 0, f"fp8 needs multiples of {unit}: {list(values.shape)}"
    assert all(size % recipe.unit == 0 for size in weight.shape), f"a weight of {list(weight.shape)} in fp8"


class SeeGradient(torch.autograd.Function):
    """The identity; its gradient is seen by ``scaling``, and ends a backward pass if ``is_last``."""

    @staticmethod
    def forward(ctx: Any, product: Tensor, scaling: Scaling | None, is_last: bool) -> Tensor:
        ctx.scaling, ctx.is_last = scaling, is_last
        return product.view_as(product)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.scaling is not None:
            ctx.scaling.see(0, gradient)
        if ctx.is_last:
            FP8GlobalStateManager.reduce_and_update(forward=False)
        return gradient, None, None
