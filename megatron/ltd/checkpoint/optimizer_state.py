"""The optimizer state in a checkpoint, in one form for all of Megatron-Core's optimizers.

    optimizer.state.exp_avg.<parameter>       first moment        sharded as the tensors of the model
    optimizer.state.exp_avg_sq.<parameter>    second moment
    optimizer.state.fp32_param.<parameter>    main weights of runs in bf16 and fp16
    step, grad_scaler                         plain values

Megatron-Core's plain and distributed optimizers store the same numbers in different forms, and cannot read each
other's. Here the distributed one's are stored by ``owned_boxes`` under the plain one's names, so that a checkpoint
continues with and without ``--use-distributed-optimizer``, in fp32 and in bf16. Learning rates, weight decay, betas and
epsilon are not stored: they are flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

from megatron.ltd.checkpoint.owned_boxes import MAIN_WEIGHTS, owned_state

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Megatron-Core's name of a state that has the shapes of the parameters."""


def stored_optimizer(optimizer: MegatronOptimizer, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The state of ``optimizer`` for a checkpoint; ``weights`` is the model's sharded state."""
    part = _only_part(optimizer)
    scaler = getattr(part, "grad_scaler", None)
    return {
        "tensors": _tensors(part, weights, main_weights=_has_main_weights(part)),
        "step": max(group.get("step", 0) for group in part.param_groups),
        "grad_scaler": scaler.state_dict() if scaler else None,
    }


def wanted_optimizer(
    optimizer: MegatronOptimizer, weights: Mapping[str, Any], *, stored_in_low_precision: bool
) -> dict[str, Any]:
    """The tensors that ``optimizer`` reads from a checkpoint; the distributed one's are read into its own memory.

    ``stored_in_low_precision``: the checkpoint's run used bf16 or fp16.
    """
    part = _only_part(optimizer)
    reads_main_weights = stored_in_low_precision and _has_main_weights(part)
    return {"tensors": _tensors(part, weights, main_weights=reads_main_weights, is_loading=True)}


def load_optimizer(optimizer: MegatronOptimizer, loaded: Mapping[str, Any]) -> None:
    """Load what was read for ``wanted_optimizer`` into ``optimizer``, which keeps its own settings.

    The weights of the model are already loaded; they become the main weights if the checkpoint has none.
    """
    part, tensors = _only_part(optimizer), loaded["tensors"]
    if isinstance(part, DistributedOptimizer):
        _load_distributed(part, loaded)
        return
    settings = [{name: group[name] for name in group if name not in ("params", "step")} for group in part.param_groups]
    state = part.state_dict()
    inner = state if "param_groups" in state else state["optimizer"]
    for group in inner["param_groups"]:
        group["step"] = loaded["step"]
    inner["state"] = tensors["state"]
    if "main_weights" in tensors:
        state["fp32_from_fp16_params"] = tensors["main_weights"]
    if loaded.get("grad_scaler") is not None:
        state["grad_scaler"] = loaded["grad_scaler"]
    part.load_state_dict(state)
    if "main_weights" not in tensors and isinstance(part, Float16OptimizerWithFloat16Params):
        part.reload_model_params()
    for group, own in zip(part.param_groups, settings, strict=True):
        group.update(own)


def _load_distributed(part: DistributedOptimizer, loaded: Mapping[str, Any]) -> None:
    """The rest of the state: the tensors are already where they belong."""
    for group in part.param_groups:
        group["step"] = loaded["step"]
    if part.grad_scaler and loaded.get("grad_scaler") is not None:
        part.grad_scaler.load_state_dict(loaded["grad_scaler"])
    if _has_main_weights(part) and not any(MAIN_WEIGHTS in tensors for tensors in loaded["tensors"].values()):
        part.reload_model_params()


def _only_part(optimizer: MegatronOptimizer) -> MegatronOptimizer:
    """The only optimizer: Megatron-Core chains one per kind of parameter, and without experts there is one kind."""
    (part,) = optimizer.chained_optimizers
    return part


def _has_main_weights(part: MegatronOptimizer) -> bool:
    """Whether the optimizer has weights in fp32 besides those of the model."""
    return part.config.bf16 or part.config.fp16


def _tensors(
    part: MegatronOptimizer, weights: Mapping[str, Any], *, main_weights: bool, is_loading: bool = False
) -> dict[Any, Any]:
    """The sharded tensors of the optimizer, the plain one's in the structure that Megatron-Core reads."""
    if isinstance(part, DistributedOptimizer):
        return owned_state(part, weights, main_weights=main_weights)
    state = part.sharded_state_dict(weights, is_loading=is_loading, metadata=SHARDING)
    if not isinstance(part, Float16OptimizerWithFloat16Params):
        return {"state": state["state"]}
    tensors = {"state": state["optimizer"]["state"]}
    return {**tensors, "main_weights": state["fp32_from_fp16_params"]} if main_weights else tensors
