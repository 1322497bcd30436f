"""Linear layers, also split over ranks by columns or rows, and after a norm.

                 forward                                         backward
    column       gathers the sequence, or nothing                the reverse: adds up and scatters, or adds up
    row          adds up and scatters the sequence, or adds up   gathers, or nothing

Of each pair the first is with sequence parallelism, the second without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...signatures import recorded
from ..distributed import add_up, add_up_and_scatter, collective, gather, group_size, keep
from .base import TransformerEngineBaseModule
from .norms import normalized

_IGNORED = ("rng_tracker_name", "name", "ub_name")


class _Product(torch.autograd.Function):
    """A product whose backward pass adds the gradient of the weight to ``main_grad``, and returns one that is garbage.

    As Transformer Engine's with ``fuse_wgrad_accumulation``, which returns memory that nothing has written, and writes
    over what is in ``main_grad`` in the first microbatch.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, is_first_microbatch: bool | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.main_grad = weight.main_grad  # type: ignore[attr-defined]
        ctx.is_first_microbatch = is_first_microbatch
        return F.linear(values, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, weight = ctx.saved_tensors
        product = gradient.flatten(0, -2).t() @ values.flatten(0, -2)
        if ctx.is_first_microbatch:
            ctx.main_grad.zero_()
        ctx.main_grad.add_(product.to(ctx.main_grad.dtype))
        weight.grad_added_to_main_grad = True
        return gradient @ weight, torch.full_like(weight, torch.nan), None


class _Linear(TransformerEngineBaseModule):
    """``setup`` and ``multiply``, which both kinds share."""

    def setup(
        self,
        in_features: int,
        out_features: int,
        *,
        sequence_parallel: bool,
        tp_group: Any,
        tp_size: int,
        get_rng_state_tracker: Callable[[], Any] | None,
        init_method: Callable[[Tensor], Any] | None,
        bias: bool,
        return_bias: bool,
        params_dtype: torch.dtype | None,
        parallel_mode: str | None,
        device: Any,
        fuse_wgrad_accumulation: bool,
    ) -> None:
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        assert parallel_mode in ("row", "column", None), f"parallel_mode {parallel_mode} not supported"
        assert tp_group is not None or tp_size == 1, "TP group not initialized."
        self.set_tensor_parallel_group(tp_group)
        self.tp_size = group_size(tp_group)
        self.parallel_mode, self.use_bias, self.return_bias = parallel_mode, bias, return_bias
        self.sequence_parallel = self.tp_size > 1 and sequence_parallel
        split = in_features if parallel_mode == "row" else out_features
        assert parallel_mode is None or split % self.tp_size == 0, f"{split} is not divisible by {self.tp_size}"
        self.in_features = in_features // (self.tp_size if parallel_mode == "row" else 1)
        self.out_features = out_features // (self.tp_size if parallel_mode == "column" else 1)
        tracker = None if get_rng_state_tracker is None else get_rng_state_tracker()
        with nullcontext() if tracker is None else tracker.fork():
            shape = (self.out_features, self.in_features)
            self.weight = self.make_parameter(shape, params_dtype, device, init_method or _usual_values)
        _mark_as_part(self.weight, 1 if parallel_mode == "row" else 0)
        if not bias:
            self.bias = torch.empty(0, dtype=params_dtype, device=device)
            return
        self.bias = self.make_parameter((self.out_features,), params_dtype, device, torch.nn.init.zeros_)
        if parallel_mode == "column":
            _mark_as_part(self.bias, 0)
        elif parallel_mode == "row":
            self.bias.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def multiply(self, values: Tensor, is_first_microbatch: bool | None) -> Tensor | tuple[Tensor, Tensor]:
        self.see(values, self.weight, is_first_microbatch)
        for name, parameter in self.named_parameters():
            assert values.dtype == parameter.dtype, f"input dtype: {values.dtype} and {name!r} dtype: {parameter.dtype}"
        if self.parallel_mode == "column":
            forwards, backwards = (gather, add_up_and_scatter) if self.sequence_parallel else (keep, add_up)
            values = collective(values, self.tp_group, forwards, backwards)
        fused = self.fuse_wgrad_accumulation and torch.is_grad_enabled()
        if fused:
            product = _Product.apply(values, self.weight, is_first_microbatch)
        else:
            product = F.linear(values, self.weight)
        product = self.see_gradient(product)
        if self.parallel_mode == "row":
            forwards, backwards = (add_up_and_scatter, gather) if self.sequence_parallel else (add_up, keep)
            product = collective(product, self.tp_group, forwards, backwards)
        if self.return_bias:
            return product, self.bias
        return product + self.bias if self.use_bias else product


def _usual_values(weight: Tensor) -> None:
    torch.nn.init.normal_(weight, mean=0.0, std=0.023)


def _mark_as_part(parameter: Tensor, dimension: int) -> None:
    parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dimension, 1  # type: ignore[attr-defined]


class Linear(_Linear):
    @recorded("pytorch.module.linear.Linear.__init__", ignores=_IGNORED)
    def __init__(
        self, in_features, out_features, sequence_parallel, tp_group, tp_size, get_rng_state_tracker, init_method, bias,
        return_bias, params_dtype, parallel_mode, device, fuse_wgrad_accumulation, save_original_input,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_original_input = save_original_input
        self.setup(
            in_features, out_features, sequence_parallel=sequence_parallel, tp_group=tp_group, tp_size=tp_size,
            get_rng_state_tracker=get_rng_state_tracker, init_method=init_method, bias=bias, return_bias=return_bias,
            params_dtype=params_dtype, parallel_mode=parallel_mode, device=device,
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
        )  # fmt: skip

    @recorded("pytorch.module.linear.Linear.forward")
    def forward(self, inp: Tensor, is_first_microbatch: bool | None) -> Tensor | tuple[Tensor, Tensor]:
        return self.multiply(inp, is_first_microbatch)


class LayerNormLinear(_Linear):
    """The product after a norm; its parameters are ``layer_norm_weight``, ``layer_norm_bias``, ``weight``, ``bias``."""

    @recorded("pytorch.module.layernorm_linear.LayerNormLinear.__init__", ignores=_IGNORED)
    def __init__(
        self, in_features, out_features, eps, sequence_parallel, tp_group, tp_size, get_rng_state_tracker, init_method,
        bias, normalization, return_bias, params_dtype, parallel_mode, zero_centered_gamma, device,
        fuse_wgrad_accumulation,
    ) -> None:  # fmt: skip
        super().__init__()
        assert normalization in ("LayerNorm", "RMSNorm"), "Unsupported normalization type!"
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        start = torch.nn.init.zeros_ if zero_centered_gamma else torch.nn.init.ones_
        shape = (in_features,)
        self.layer_norm_weight = self.make_parameter(shape, params_dtype, device, start)
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            self.layer_norm_bias = self.make_parameter(shape, params_dtype, device, torch.nn.init.zeros_)
        of_norm = list(self.parameters())
        self.setup(
            in_features, out_features, sequence_parallel=sequence_parallel, tp_group=tp_group, tp_size=tp_size,
            get_rng_state_tracker=get_rng_state_tracker, init_method=init_method, bias=bias, return_bias=return_bias,
            params_dtype=params_dtype, parallel_mode=parallel_mode, device=device,
            fuse_wgrad_accumulation=fuse_wgrad_accumulation,
        )  # fmt: skip
        for parameter in of_norm:
            parameter.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    @recorded("pytorch.module.layernorm_linear.LayerNormLinear.forward")
    def forward(self, inp: Tensor, is_first_microbatch: bool | None) -> Tensor | tuple[Tensor, Tensor]:
        weight, bias = self.layer_norm_weight, self.layer_norm_bias
        values = normalized(self.normalization, inp, weight, bias, self.eps, self.zero_centered_gamma)
        return self.multiply(values, is_first_microbatch)
