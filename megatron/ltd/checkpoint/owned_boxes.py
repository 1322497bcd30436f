"""The state of the distributed optimizer in a checkpoint: each process writes and reads the numbers that it owns.

A process owns a run of the numbers of a parameter, row after row. The run is cut into boxes of the parameter's tensor:

    . . . a a a      a  the rest of a row
    b b b b b b      b  whole rows
    b b b b b b
    c c . . . .      c  the beginning of a row

The boxes of all processes fill the tensor, so that the checkpoint holds the state in the shape of the parameters, and
any layout can load it. They are views of the optimizer's own memory: nothing is gathered, copied or read twice.
Megatron-Core's own form of this state gathers all of it on every process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

MAIN_WEIGHTS = "fp32_param"
_MOMENTS = ("exp_avg", "exp_avg_sq")

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes, by dimension."""


def boxes(shape: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """Boxes of a tensor of ``shape`` that hold its numbers ``start`` to ``end``, in row-major order, one after another.

    At most 2 n - 1 for n dimensions.
    """
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    while start < end:
        number, within = divmod(start, row)
        whole_rows = (end - start) // row if within == 0 else 0
        if whole_rows:
            yield (number, *[0] * (len(shape) - 1)), (whole_rows, *shape[1:])
            start += whole_rows * row
            continue
        stop = min(end, (number + 1) * row)
        for offsets, sizes in boxes(shape[1:], within, stop - number * row):
            yield (number, *offsets), (1, *sizes)
        start = stop


def owned_state(
    optimizer: DistributedOptimizer, weights: Mapping[str, Any], *, main_weights: bool
) -> dict[int, dict[str, list[ShardedTensor]]]:
    """This process's numbers, as views: for each parameter of which it owns some the boxes of each part of the state.

    ``weights`` is the model's sharded state; ``main_weights``: also those in fp32.
    """
    placed = {part.data: part for part in nested_values(dict(weights)) if part.data is not None}
    state: dict[int, dict[str, list[ShardedTensor]]] = {}
    for parameter, start, end in _owned_runs(optimizer):
        group, place = optimizer.model_param_group_index_map[parameter]
        own = optimizer.optimizer.param_groups[group]["params"][place]
        tensors = {name: optimizer.optimizer.state[own][name] for name in _MOMENTS}
        if main_weights:
            tensors[MAIN_WEIGHTS] = own
        state[len(state)] = {
            name: list(_as_boxes(name, tensor.detach(), placed[parameter], start, end))
            for name, tensor in tensors.items()
        }
    return state


def _owned_runs(optimizer: DistributedOptimizer) -> Iterator[tuple[Tensor, int, int]]:
    """Each parameter of which this process owns numbers, and from which to which."""
    for buckets_by_type in optimizer.gbuf_ranges:
        for buckets in buckets_by_type.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _as_boxes(
    name: str, owned: Tensor, parameter: ShardedTensor | ShardedTensorFactory, start: int, end: int
) -> Iterator[ShardedTensor]:
    """The boxes of ``owned``, the numbers ``start`` to ``end`` of a parameter, in the tensor of the whole model."""
    parts = nested_values(parameter.build()) if isinstance(parameter, ShardedTensorFactory) else [parameter]
    for part in parts:  # several where a parameter holds two matrices, one after another
        assert part.data.is_contiguous(), part.key
        begin = part.data.storage_offset() - parameter.data.storage_offset()
        first, last = max(start, begin), min(end, begin + part.data.numel())
        read = first - start
        layers, place = part.global_offset[: part.prepend_axis_num], part.global_offset[part.prepend_axis_num :]
        for offsets, sizes in boxes(part.data.shape, first - begin, last - begin) if first < last else ():
            shape = (*[1] * len(layers), *sizes)
            yield ShardedTensor(
                key=f"optimizer.state.{name}.{part.key}",
                data=owned[read : read + math.prod(sizes)].view(shape),
                dtype=owned.dtype,
                local_shape=shape,
                global_shape=part.global_shape,
                global_offset=(*layers, *(at + offset for at, offset in zip(place, offsets, strict=True))),
                axis_fragmentations=None,  # not a regular grid
                replica_id=(*part.replica_id[:2], 0),  # only this process of its data-parallel group has them
                allow_shape_mismatch=part.allow_shape_mismatch,
            )
            read += math.prod(sizes)
