"""The optimizer state in a checkpoint, in one form for all of Megatron-Core's optimizers.

    optimizer.state.exp_avg.<parameter>       first moment        sharded as the tensors of the model
    optimizer.state.exp_avg_sq.<parameter>    second moment
    optimizer.state.fp32_param.<parameter>    main weights of runs in bf16 and fp16
    step, grad_scaler                         plain values

Megatron-Core's plain and distributed optimizers store the same numbers in different forms, and cannot read each
other's. Here both are converted when saved and loaded, so that a checkpoint continues with and without
``--use-distributed-optimizer``, in fp32 and in bf16. Learning rates, weight decay, betas and epsilon are not stored:
they are flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params

SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
"""The distributed optimizer's state has the shapes of the parameters."""


def stored_optimizer(optimizer: MegatronOptimizer, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The state of ``optimizer`` for a checkpoint; ``weights`` is the model's sharded state. Every rank calls this."""
    part = _only_part(optimizer)
    with _unpadded_places(part):
        state = part.sharded_state_dict(weights, metadata=SHARDING)
    if _is_distributed(part):
        for tensors in state["param_state"].values():
            main_weights = tensors.pop("param")
            if _has_main_weights(part):
                tensors["param"] = _as_main_weights(main_weights)
    steps = [group.get("step", 0) for group in part.param_groups]
    return {"tensors": _tensors(part, state), "step": max(steps), "grad_scaler": state.get("grad_scaler")}


def wanted_optimizer(
    optimizer: MegatronOptimizer, weights: Mapping[str, Any], *, stored_in_low_precision: bool
) -> dict[str, Any]:
    """The tensors that ``optimizer`` reads from a checkpoint. Every rank calls this.

    ``stored_in_low_precision``: the checkpoint's run used bf16 or fp16.
    """
    part = _only_part(optimizer)
    state = part.sharded_state_dict(weights, is_loading=True, metadata=SHARDING)
    reads_main_weights = stored_in_low_precision and _has_main_weights(part)
    tensors = _tensors(part, state)
    if _is_distributed(part):
        for parameter_tensors in tensors.values():
            main_weights = parameter_tensors.pop("param")
            if reads_main_weights:
                parameter_tensors["param"] = _as_main_weights(main_weights)
    elif not reads_main_weights:
        tensors.pop("main_weights", None)
    return {"tensors": tensors}


def load_optimizer(optimizer: MegatronOptimizer, loaded: Mapping[str, Any]) -> None:
    """Load what was read for ``wanted_optimizer`` into ``optimizer``, which keeps its own settings.

    The weights of the model are already loaded; they become the main weights if the checkpoint has none.
    """
    part, tensors = _only_part(optimizer), loaded["tensors"]
    settings = [{name: group[name] for name in group if name not in ("params", "step")} for group in part.param_groups]
    state = part.state_dict()
    inner = state if "param_groups" in state else state["optimizer"]
    for group in inner["param_groups"]:
        group["step"] = loaded["step"]
    if _is_distributed(part):
        parameters = [parameter for buffer in part.buffers for parameter in buffer.param_index_map]
        for number, parameter in enumerate(parameters):
            tensors[number].setdefault("param", parameter.detach().float())
        state |= {"param_state": tensors, "param_state_sharding_type": SHARDING["distrib_optim_sharding_type"]}
    else:
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


@contextmanager
def _unpadded_places(part: MegatronOptimizer) -> Iterator[None]:
    """Within the block the places of parameters in buffers are those of buckets without padding.

    Megatron-Core gathers the state of a buffer bucket by bucket, each without the padding at its end, but then uses the
    place of a parameter in the padded buffer: after a padded bucket it would store the numbers of other parameters.
    """
    buffers = part.buffers if _is_distributed(part) else []
    padded = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        shifts, unpadded_end = [], 0
        for bucket in buffer.buckets:
            shifts.append(bucket.offset - unpadded_end)
            unpadded_end += bucket.numel_unpadded
        buffer.param_index_map = {
            parameter: (start - shifts[bucket_id], end - shifts[bucket_id], bucket_id)
            for parameter, (start, end, bucket_id) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, places in zip(buffers, padded, strict=True):
            buffer.param_index_map = places


def _only_part(optimizer: MegatronOptimizer) -> MegatronOptimizer:
    """The only optimizer: Megatron-Core chains one per kind of parameter, and without experts there is one kind."""
    (part,) = optimizer.chained_optimizers
    return part


def _is_distributed(part: MegatronOptimizer) -> bool:
    return isinstance(part, DistributedOptimizer)


def _has_main_weights(part: MegatronOptimizer) -> bool:
    """Whether the optimizer has weights in fp32 besides those of the model."""
    return part.config.bf16 or part.config.fp16


def _tensors(part: MegatronOptimizer, state: Mapping[str, Any]) -> dict[Any, Any]:
    """The sharded tensors in ``state``, in the structure that Megatron-Core's optimizer reads."""
    if _is_distributed(part):
        return state["param_state"]
    if isinstance(part, Float16OptimizerWithFloat16Params):
        return {"state": state["optimizer"]["state"], "main_weights": state["fp32_from_fp16_params"]}
    return {"state": state["state"]}


def _as_main_weights(tensor: ShardedBase) -> ShardedBase:
    """The distributed optimizer's main weights of a parameter, under the plain optimizer's name."""
    return replace(tensor, key=tensor.key.replace("optimizer.state.param.", "optimizer.state.fp32_param.", 1))
