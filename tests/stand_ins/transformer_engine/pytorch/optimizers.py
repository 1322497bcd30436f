"""Adam with the state of Transformer Engine's, and operations on lists of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..signatures import recorded
from ..unreached import unreached

FusedSGD = unreached("FusedSGD")


class MultiTensorApply:
    """Calls an operation with lists of tensors."""

    @recorded("pytorch.optimizers.multi_tensor_apply.MultiTensorApply.__call__")
    def __call__(
        self, op: Callable[..., Any], noop_flag_buffer: Tensor, tensor_lists: list[list[Tensor]], args: tuple[Any, ...]
    ) -> Any:
        assert noop_flag_buffer.dtype == torch.int32 and len({len(tensors) for tensors in tensor_lists}) == 1
        return op(2048 * 32, noop_flag_buffer, tensor_lists, *args)


multi_tensor_applier = MultiTensorApply()


def multi_tensor_l2norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], per_tensor: bool | None = None
) -> tuple[Tensor, Tensor]:
    """The norm of all tensors together, [1], and that of each, if asked for."""
    norms = torch.stack([tensor.float().norm() for tensor in tensor_lists[0]])
    return norms.norm().reshape(1), norms if per_tensor else norms[:0]


def multi_tensor_scale(chunk_size: int, is_infinite: Tensor, tensor_lists: list[list[Tensor]], scale: float) -> None:
    """Write the scaled tensors of the first list to those of the second."""
    for source, target in zip(*tensor_lists, strict=True):
        target.copy_(source * scale)


class FusedAdam(torch.optim.Optimizer):
    """AdamW. The step is a number in the group; a loaded state is in fp32, whatever the type of its parameter."""

    @recorded("pytorch.optimizers.fused_adam.FusedAdam.__init__", ignores=("capturable",))
    def __init__(self, params, lr, betas, eps, weight_decay, bias_correction, adam_w_mode) -> None:
        assert adam_w_mode and bias_correction, "only AdamW"
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        own = [parameter for group in self.param_groups for parameter in group["params"]]
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(saved, own, strict=True):
            loaded = state_dict["state"].get(number, {})
            self.state[parameter] = {name: value.float().clone() for name, value in loaded.items()}

    @torch.no_grad()
    @recorded("pytorch.optimizers.fused_adam.FusedAdam.step")
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {name: torch.zeros_like(parameter).float() for name in ("exp_avg", "exp_avg_sq")}
                if parameter.grad is not None:
                    _update(parameter, state, group)


def _update(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    (beta1, beta2), step, gradient = group["betas"], group["step"], parameter.grad.float()
    mean = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1**step)
    square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2) / (1 - beta2**step)
    parameter.sub_(group["lr"] * (mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter))
