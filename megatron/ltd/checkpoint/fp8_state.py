"""The state of fp8's delayed scaling in a checkpoint: tensors alone, where Transformer Engine would pickle.

    fp8.layers.3.mlp.linear_fc1.scaling_fwd.scale          float32 [3]      scales of input, weight and output
    fp8.layers.3.mlp.linear_fc1.scaling_fwd.amax_history   float32 [N, 3]   largest values of N microbatches
                                scaling_bwd ...            of 2 gradients

Processes of a pipeline stage reduce these after every microbatch and so have the same, but for the largest values since
then (of an evaluation), which the next reduction would combine, and saving does. Every layout can therefore load the
state. It is used only with the recipe, and the length of the history, that wrote it; otherwise, and with the weights of
a checkpoint alone, scales are found anew from 1, as at step 0. Other recipes have no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.fp8_utils import get_fp8_recipe
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron.ltd.models.fusions import products

_QUANTIZERS = {"scaling_fwd": 3, "scaling_bwd": 2}
"""Transformer Engine's names of the two states of a linear layer, and the number of tensors that each scales."""
_PARTS = ("scale", "amax_history")


def scaling_state(chunks: Iterable[torch.nn.Module]) -> dict[str, Any]:
    """The state that a checkpoint stores; empty without delayed scaling. Every rank calls this."""
    found: dict[str, Tensor] = {}
    for prefix, module in _scaled(chunks):
        for name, tensors in (module.get_fp8_meta_tensors() or {}).items():
            found |= {f"{prefix}.{name}.{part}": tensor for part, tensor in zip(_PARTS, tensors, strict=True)}
    if not found:
        return {}
    group = _group()
    flat = torch.cat([tensor.flatten() for tensor in found.values()])
    dist.all_reduce(flat, op=dist.ReduceOp.MAX, group=group)
    for tensor, part in zip(found.values(), flat.split([one.numel() for one in found.values()]), strict=True):
        tensor.copy_(part.view_as(tensor))
    return {"fp8": {key: _sharded(key, tensor, group) for key, tensor in found.items()}}


def wanted_scaling(chunks: Iterable[torch.nn.Module], stored: Metadata) -> dict[str, Any]:
    """What is loaded of the tensors that a checkpoint has ``stored``; empty if its state does not fit."""
    wanted: dict[str, ShardedTensor] = {}
    for prefix, module in _scaled(chunks):
        length, device = module.config.fp8_amax_history_len, module.weight.device
        shapes = {
            f"{prefix}.{name}.{part}": shape
            for name, number in _QUANTIZERS.items()
            for part, shape in zip(_PARTS, ((number,), (length, number)), strict=True)
        }
        if all(_has(stored, key, shape) for key, shape in shapes.items()):
            empty = {key: torch.empty(shape, device=device) for key, shape in shapes.items()}
            wanted |= {key: _sharded(key, tensor, _group()) for key, tensor in empty.items()}
    return {"fp8": wanted} if wanted else {}


def put_scaling(chunks: Iterable[torch.nn.Module], loaded: Mapping[str, Tensor]) -> None:
    """Put what ``wanted_scaling`` asked for into the layers, before their first product."""
    for prefix, module in _scaled(chunks):
        if f"{prefix}.scaling_fwd.scale" not in loaded:
            continue
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        recipe = get_fp8_recipe(module.config)
        module.fp8_meta |= {"recipe": recipe, "num_gemms": 1, "fp8_group": _group()}
        module.init_fp8_meta_tensors(recipe)
        module.reset_fp8_meta_tensors(
            {name: [loaded[f"{prefix}.{name}.{part}"] for part in _PARTS] for name in _QUANTIZERS}
        )
        # Its history goes on with the next reduction, whether or not the layer is skipped until then.
        FP8GlobalStateManager.add_fp8_tensors_to_global_buffer(module.fp8_meta)


def _scaled(chunks: Iterable[torch.nn.Module]) -> Iterator[tuple[str, Any]]:
    """The layers' products that have a state, by the start of its names."""
    layers = (layer for chunk in chunks for layer in chunk.modules() if isinstance(layer, TransformerLayer))
    for layer in layers:
        if layer.config.fp8 and layer.config.fp8_recipe == "delayed":
            names = {module: name for name, module in layer.named_modules()}
            yield from ((f"fp8.layers.{layer.layer_number}.{names[module]}", module) for module in products([layer]))


def _group() -> ProcessGroup:
    """The processes whose scales are the same, as Megatron-Core chooses them."""
    return parallel_state.get_amax_reduction_group(with_context_parallel=True)


def _sharded(key: str, tensor: Tensor, group: ProcessGroup) -> ShardedTensor:
    return ShardedTensor.from_rank_offsets(key, tensor, replica_id=group.rank())


def _has(stored: Metadata, key: str, shape: tuple[int, ...]) -> bool:
    entry = stored.state_dict_metadata.get(key)
    return isinstance(entry, TensorStorageMetadata) and tuple(entry.size) == shape
