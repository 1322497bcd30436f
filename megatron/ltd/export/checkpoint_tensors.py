"""Reads tensors from a checkpoint of any layout, one at a time, without a model or process groups.

    decoder.layers.7.mlp.linear_fc1.weight   ->   row 7 of decoder.layers.mlp.linear_fc1.weight [L, ...]
                                                  = boxes that several ranks wrote, read where they overlap it

Megatron-Core stores a tensor of all layers under one name, in the boxes of the ranks. torch's own reader opens the
files, and loads only tensors (``checkpoint.read``); this module plans what to read from which box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner, Metadata
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from megatron.ltd.checkpoint.read import described, reading
from megatron.ltd.errors import UserError

_LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.(.+)")


@dataclass(frozen=True)
class _Box:
    """A part of a tensor: its offset and size along each axis."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def overlap(self, other: _Box) -> _Box | None:
        """The intersection, None if it is empty."""
        starts = tuple(map(max, self.offsets, other.offsets))
        ends = tuple(
            min(mine + size, theirs + other_size)
            for mine, size, theirs, other_size in zip(self.offsets, self.sizes, other.offsets, other.sizes, strict=True)
        )
        sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
        return _Box(starts, sizes) if all(size > 0 for size in sizes) else None

    def offsets_in(self, outer: _Box) -> torch.Size:
        """The offsets relative to ``outer``."""
        return torch.Size(mine - theirs for mine, theirs in zip(self.offsets, outer.offsets, strict=True))


class CheckpointTensors:
    """The weights in a checkpoint folder, by their names with the number of the layer."""

    def __init__(self, checkpoint: Path, metadata: Metadata | None = None) -> None:
        """``metadata``: the description of its tensors, if it is known."""
        self._checkpoint = checkpoint
        self._reader = FileSystemReader(checkpoint)
        self._metadata = described(checkpoint) if metadata is None else metadata
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self._entries = self._metadata.state_dict_metadata

    def dtype(self, name: str) -> torch.dtype:
        """The type of a stored tensor."""
        return self._entry(name)[1].properties.dtype

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor as it is stored, [shape]; the first rows of one with more rows (a padded vocabulary).

        Raises ``UserError`` if the checkpoint does not have it, or not in this shape.
        """
        key, entry, layer = self._entry(name)
        whole = tuple(entry.size)[0 if layer is None else 1 :]
        if len(whole) != len(shape) or whole[0] < shape[0] or whole[1:] != shape[1:]:
            raise self._refusal(f"{name} has shape {list(whole)}, but the flags of its run say {list(shape)}")
        wanted = _Box((0,) * len(shape), shape) if layer is None else _Box((layer, *(0,) * len(shape)), (1, *shape))
        target = torch.empty(wanted.sizes, dtype=entry.properties.dtype)
        items, num_values = [], 0
        for chunk in entry.chunks:
            stored = _Box(tuple(chunk.offsets), tuple(chunk.sizes))
            common = stored.overlap(wanted)
            if common is None:
                continue
            num_values += torch.Size(common.sizes).numel()
            items.append(
                ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=MetadataIndex(key),
                    dest_offsets=common.offsets_in(wanted),
                    storage_index=MetadataIndex(key, chunk.offsets),
                    storage_offsets=common.offsets_in(stored),
                    lengths=torch.Size(common.sizes),
                )
            )
        if num_values != target.numel():
            raise self._refusal(f"it has {num_values} of {target.numel()} values of {name}")
        with reading(self._checkpoint, self._metadata):
            self._reader.read_data(LoadPlan(items), _ReadInto(target)).wait()
        return target.view(shape)

    def _entry(self, name: str) -> tuple[str, TensorStorageMetadata, int | None]:
        """The name of the stored tensor, its metadata, and the index of the layer in it."""
        found = _LAYER.fullmatch(name)
        key = name if found is None else found[1] + found[3]
        entry = self._entries.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise self._refusal(f"tensor {key} is missing")
        return key, entry, None if found is None else int(found[2])

    def _refusal(self, what: str) -> UserError:
        return UserError(f"checkpoint {self._checkpoint} does not match its run.json ({what}): restore it from a copy")


class _ReadInto(LoadPlanner):
    """Reads everything into one tensor."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def set_up_planner(self, *_: Any, **__: Any) -> None:
        """Nothing to set up: the plan exists."""

    def create_local_plan(self) -> LoadPlan:
        raise AssertionError("the plan is made already")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise AssertionError("one process reads")

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise AssertionError("the plan is made already")

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise AssertionError("tensors only are asked for")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The part of the target that ``read_item`` fills."""
        place = tuple(
            slice(start, start + size) for start, size in zip(read_item.dest_offsets, read_item.lengths, strict=True)
        )
        return self._target[place]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing to do: it was read into the target."""
