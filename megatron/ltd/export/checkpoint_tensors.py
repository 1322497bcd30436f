"""Reads tensors from a checkpoint of any layout, one at a time, without a model or process groups.

    decoder.layers.7.mlp.linear_fc1.weight   ->   row 7 of decoder.layers.mlp.linear_fc1.weight [L, ...]
                                                  = boxes that several ranks wrote, read where they overlap it

Megatron-Core stores a tensor of all layers under one name, in the boxes of the ranks. torch plans what to read from
which box, opens the files, and loads only tensors (``checkpoint.read``).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, LoadPlan, Metadata
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron.ltd.checkpoint.read import described, reading
from megatron.ltd.errors import UserError

_LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.(.+)")


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
        offsets, sizes = ((), ()) if layer is None else ((layer,), (1,))
        wanted = ChunkStorageMetadata(torch.Size((*offsets, *[0] * len(shape))), torch.Size((*sizes, *shape)))
        target = torch.empty(wanted.sizes, dtype=entry.properties.dtype)
        items = create_read_items_for_chunk_list(key, entry, [wanted])
        num_values = sum(item.lengths.numel() for item in items)
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


class _ReadInto(DefaultLoadPlanner):
    """Reads everything into one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The target, of which each item fills a part."""
        return self._target
