"""Writes the tensors of a model into safetensors files, one at a time.

    model.safetensors                                      or, of more than ``max_shard_bytes``:
    model-00001-of-00003.safetensors, ...                  and model.safetensors.index.json, which lists them

    file = length of the header [8 bytes, little-endian], header [JSON: type, shape and place of each tensor], tensors

The format's own library needs all of a file in memory, twice. Reading (``weights``) uses the library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron.ltd.hugging_face.architecture import Architecture, Counterpart
from megatron.ltd.hugging_face.config_file import INDEX, WEIGHTS

_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class WrittenWeights:
    """The files that were written, and their size."""

    files: tuple[str, ...]
    num_parameters: int
    num_bytes: int


def write_weights(
    folder: Path,
    architecture: Architecture,
    counterparts: Mapping[str, Counterpart],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> WrittenWeights:
    """Write all of their tensors in ``counterparts``. ``read`` returns one of our tensors by its name.

    A tensor that is larger than ``max_shard_bytes`` gets a separate file. Raises ``OSError``.
    """
    shards = _shards(counterparts, dtype.itemsize, max_shard_bytes)
    count = len(shards)
    files = [WEIGHTS] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, architecture, {name: counterparts[name] for name in names}, read, dtype)
    num_parameters = sum(prod(found.shape) for found in counterparts.values())
    num_bytes = num_parameters * dtype.itemsize
    if count > 1:
        weight_map = {
            architecture.full_name(theirs): file
            for file, names in zip(files, shards, strict=True)
            for name in names
            for theirs in counterparts[name].names
        }
        index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return WrittenWeights(tuple(files), num_parameters, num_bytes)


def _shards(counterparts: Mapping[str, Counterpart], value_bytes: int, max_shard_bytes: int) -> list[list[str]]:
    """Our names, in order, in groups of at most ``max_shard_bytes``."""
    shards: list[list[str]] = [[]]
    filled_bytes = 0
    for name, counterpart in counterparts.items():
        num_bytes = prod(counterpart.shape) * value_bytes
        if shards[-1] and filled_bytes + num_bytes > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(name)
        filled_bytes += num_bytes
    return shards


def _write_shard(
    path: Path,
    architecture: Architecture,
    counterparts: Mapping[str, Counterpart],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> None:
    """One file, in the order of ``counterparts``."""
    theirs = [
        (architecture.full_name(name), shape)
        for found in counterparts.values()
        for name, shape in zip(found.names, found.shapes, strict=True)
    ]
    ends = list(accumulate(prod(shape) * dtype.itemsize for _, shape in theirs))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, shape), start, end in zip(theirs, [0, *ends], ends, strict=False):
        header[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode("utf-8")
    encoded += b" " * (-len(encoded) % _ALIGNMENT_BYTES)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name, found in counterparts.items():
            for tensor, shape in zip(found.arrangement.to_theirs(read(name)), found.shapes, strict=True):
                assert tuple(tensor.shape) == shape, name
                file.write(tensor.to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
