"""Reads a checkpoint without running code that it may contain.

    .metadata   torch's distributed checkpoint unpickles it without restriction. ``read_metadata`` reads it with
                ``inert_pickle`` instead, and builds torch's description from names, shapes and places only.
    the rest    is read by torch as tensors and plain values. ``tensors_only`` enforces that for all loads inside
                Megatron-Core, and gives them the description that ``read_metadata`` has built.

Checking a pickle and then unpickling it would not be safe: the two readers can be made to see different content.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from megatron.core.msc_utils import MultiStorageClientFeature
from torch.distributed.checkpoint import FileSystemReader, Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron.ltd.checkpoint.described_places import check_places
from megatron.ltd.checkpoint.files import METADATA
from megatron.ltd.checkpoint.inert_pickle import Constructed, Name, Refused, read_inert
from megatron.ltd.small_files import read_small

_METADATA = "torch.distributed.checkpoint.metadata"
_CORE_METADATA = Name("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata")
"""The class that Megatron-Core 0.15 wrote in place of torch's."""
_MEMORY_FORMATS = Name(_METADATA, "_MEM_FORMAT_ENCODING")
_GETATTR = Name("builtins", "getattr")
_MOST_BYTES = 1 << 31
_FORCE, _FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_T = TypeVar("_T")
_DTYPES = {Name("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

_KNOWN = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    _METADATA: {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {
        "SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData",
    },
    _CORE_METADATA.module: {_CORE_METADATA.name, "MCoreSavePlan"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # Python 3.13
}  # fmt: skip


class UnsafeCheckpoint(Exception):
    """The description of a checkpoint's tensors is damaged, or has other content."""


def read_metadata(checkpoint: Path, is_left_out: Callable[[str], bool] = lambda name: False) -> Metadata:
    """The ``.metadata`` of ``checkpoint`` as an object of torch's distributed checkpoint; no code in the file is run.

    Tensors and objects whose name ``is_left_out`` are not described. Raises ``UnsafeCheckpoint`` if the file holds
    anything but a description of tensors.
    """
    try:
        described = read_inert(read_small(checkpoint / METADATA, _MOST_BYTES), _check_name, _check_constructed)
        is_core = type(described) is Constructed and described.maker == _CORE_METADATA
        fields = _fields(described, *(reversed(_CORE_METADATA) if is_core else ("Metadata",)))
        listed = _typed(fields["state_dict_metadata"], dict).items()
        entries = {_typed(key, str): _entry(value) for key, value in listed if not is_left_out(_typed(key, str))}
        stored = _typed(fields["storage_data"], dict).items()
        indexed = ((_index(key), value) for key, value in stored)
        places = {index: _place(value) for index, value in indexed if not is_left_out(index.fqn)}
        check_places(checkpoint, entries, places)
        return Metadata(entries, storage_data=places)
    except (OSError, Refused) as error:
        raise UnsafeCheckpoint(f"its {METADATA} cannot be read ({error})") from None
    except KeyError as error:
        raise UnsafeCheckpoint(f"its {METADATA} cannot be read (it has no {error.args[0]})") from None


def _check_name(name: Name) -> None:
    if name not in _DTYPES and name != _GETATTR and name.name not in _KNOWN.get(name.module, ()):
        raise Refused(f"it names {name}, which describes no tensor")


def _check_constructed(made: Constructed) -> None:
    """Allow getattr for enumerations only, whose members some versions of Python pickle with it."""
    if made.maker == _GETATTR and made.arguments[:1] != (_MEMORY_FORMATS,):
        raise Refused("it calls getattr on something that is not an enumeration, which describes no tensor")


def _entry(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(value) is Constructed and value.maker == Name(_METADATA, "BytesStorageMetadata"):
        return BytesStorageMetadata()
    fields = _fields(value, "TensorStorageMetadata")
    properties = _typed(_state(fields["properties"], "TensorProperties"), tuple)
    dtype = next((_DTYPES.get(part) for part in properties[:1] if type(part) is Name), None)
    if dtype is None:
        raise Refused("a tensor has no dtype")
    chunks = [_chunk(chunk) for chunk in _typed(fields["chunks"], list)]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(fields["size"]), chunks)


def _chunk(value: Any) -> ChunkStorageMetadata:
    fields = _fields(value, "ChunkStorageMetadata")
    return ChunkStorageMetadata(_size(fields["offsets"]), _size(fields["sizes"]))


def _index(value: Any) -> MetadataIndex:
    """The name of a tensor, and the offset of a chunk in it; the index of the chunk is a hint, which is left out."""
    fields = _fields(value, "MetadataIndex")
    offset = fields.get("offset")
    return MetadataIndex(_typed(fields["fqn"], str), None if offset is None else _size(offset))


def _place(value: Any) -> _StorageInfo:
    """File, offset and length; files are not compressed (``transform_descriptors``)."""
    fields = _fields(value, "_StorageInfo", "torch.distributed.checkpoint.filesystem")
    if fields.get("transform_descriptors"):
        raise Refused("its tensors are compressed")
    return _StorageInfo(
        _typed(fields["relative_path"], str), _typed(fields["offset"], int), _typed(fields["length"], int)
    )


def _size(value: Any) -> torch.Size:
    if type(value) is not Constructed or value.maker != Name("torch", "Size") or len(value.arguments) != 1:
        raise Refused("a shape is not a torch.Size")
    lengths = [_typed(length, int) for length in _typed(value.arguments[0], tuple)]
    if any(not 0 <= length < 1 << 63 for length in lengths):
        raise Refused("a shape has a length that is negative or exceeds 64 bits")
    return torch.Size(lengths)


def _state(value: Any, name: str, module: str = _METADATA) -> Any:
    """The state of an object of the class ``name``."""
    if type(value) is not Constructed or value.maker != Name(module, name):
        raise Refused(f"an object is not a {name}")
    return value.state


def _fields(value: Any, name: str, module: str = _METADATA) -> dict[str, Any]:
    """The fields of an object of the class ``name``."""
    return _typed(_state(value, name, module), dict)


def _typed(value: Any, kind: type[_T]) -> _T:
    if type(value) is not kind:
        raise Refused(f"it has a {type(value).__name__} in place of a {kind.__name__}")
    return value


@contextmanager
def tensors_only(metadata: Metadata) -> Iterator[None]:
    """Within the block torch and Megatron-Core load only tensors and plain values, from the places in ``metadata``.

    ``torch.load`` is limited to ``weights_only`` with torch's own list of allowed names, and ``.metadata`` files are
    not opened. Raises ``pickle.UnpicklingError`` for anything else.
    """
    allowed, storage_client = torch.serialization.get_safe_globals(), MultiStorageClientFeature.is_enabled()
    read = FileSystemReader.read_metadata
    environment = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    try:
        os.environ[_FORCE] = "1"
        torch.serialization.clear_safe_globals()
        MultiStorageClientFeature.disable()  # it has another reader
        FileSystemReader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]
        yield
    finally:
        FileSystemReader.read_metadata = read  # type: ignore[method-assign]
        if storage_client:
            MultiStorageClientFeature.enable()
        torch.serialization.add_safe_globals(allowed)
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in environment.items() if value is not None})
