"""Checks that the numbers in a checkpoint's description are consistent with each other and with its files.

    tensor [4, 6] = boxes that fill it, each with a place   ->   bytes 100 to 400 of __0_0.distcp, which exist

A tensor therefore takes no more memory than its file has bytes.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex, TensorStorageMetadata

from megatron.ltd.checkpoint.inert_pickle import Refused


def check_places(
    checkpoint: Path,
    entries: Mapping[str, TensorStorageMetadata | BytesStorageMetadata],
    places: Mapping[MetadataIndex, _StorageInfo],
) -> None:
    """Raise ``Refused`` if boxes do not fill their tensor, or a box is not in a file of ``checkpoint``."""
    sizes = {name: _file_size(checkpoint, name) for name in {place.relative_path for place in places.values()}}
    for index, place in places.items():
        if not 0 <= place.offset <= place.offset + place.length <= sizes[place.relative_path]:
            raise Refused(f"it places {index.fqn} outside of {place.relative_path}")
    for name, entry in entries.items():
        if isinstance(entry, TensorStorageMetadata):
            _check_boxes(name, entry, places)


def _file_size(checkpoint: Path, name: str) -> int:
    """Size [bytes] of a file of ``checkpoint``, directly in its folder."""
    if name in ("", ".", "..") or Path(name).name != name or "\0" in name:
        raise Refused("it places tensors outside of the checkpoint's folder")
    found = os.stat(checkpoint / name)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(f"it places tensors in {name}, which is not a regular file")
    return found.st_size


def _check_boxes(name: str, entry: TensorStorageMetadata, places: Mapping[MetadataIndex, _StorageInfo]) -> None:
    filled, begins = 0, []
    for box in entry.chunks:
        ends = [start + length for start, length in zip(box.offsets, box.sizes, strict=False)]
        if not len(box.offsets) == len(box.sizes) == len(entry.size) or any(
            end > length for end, length in zip(ends, entry.size, strict=True)
        ):
            raise Refused(f"a part of {name} is outside of the tensor")
        place = places.get(MetadataIndex(name, box.offsets))
        num_values = math.prod(box.sizes)
        if place is None or place.length < num_values * entry.properties.dtype.itemsize:
            raise Refused(f"{name} has more values than its file")
        filled += num_values
        if num_values:
            begins.append(box.offsets)
    if filled != math.prod(entry.size) or len(set(begins)) != len(begins):
        raise Refused(f"the parts of {name} do not fill it")
