"""Writes a checkpoint of weights only, in Megatron-Core's format ``torch_dist``, one tensor at a time.

    decoder.layers.7.mlp.linear_fc1.weight [F, H]   ->   box 7 of decoder.layers.mlp.linear_fc1.weight [L, F, H]

torch's distributed checkpoint plans and writes; it requests each tensor when it is written, so that memory holds one at
a time. Any layout can load the result. There are no process groups.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

_FORMAT = ("torch_dist", 1)
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.(.+)")


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    num_layers: int,
    read: Callable[[str], Tensor],
    common: Mapping[str, Any],
) -> None:
    """Write tensors, by their names with the number of the layer, to an empty folder.

    ``read`` returns a tensor when it is written. ``common``: the values besides tensors. Raises ``OSError``.
    """
    parts = {name: _tensor_item(name, shape, dtype, num_layers) for name, shape in shapes.items()}
    planner = StreamedPlanner(parts, lambda name: read(name).to(dtype).contiguous())
    writer = FileSystemWriter(folder, thread_count=1)
    writer.set_up_storage_writer(is_coordinator=True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    (plan,) = writer.prepare_global_plan(plans)
    with _write_errors():
        results = writer.write_data(planner.finish_plan(plan), planner).wait()
        writer.finish(metadata, [results])
        torch.save(dict(common), folder / COMMON_STATE_FNAME)
    save_config(CheckpointingConfig(*_FORMAT), str(folder))


@contextmanager
def _write_errors() -> Iterator[None]:
    """Raise torch's ``RuntimeError`` about an archive that cannot be written, as on a full disk, as ``OSError``."""
    try:
        yield
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        cause = error.__context__
        if isinstance(cause, OSError):
            raise cause from error
        raise OSError(errno.EIO, "writing failed") from error


def _tensor_item(name: str, shape: tuple[int, ...], dtype: torch.dtype, num_layers: int) -> WriteItem:
    found = _LAYER.fullmatch(name)
    key = name if found is None else found[1] + found[3]
    box = shape if found is None else (1, *shape)
    whole = shape if found is None else (num_layers, *shape)
    offsets = torch.Size([0] * len(box) if found is None else [int(found[2]), *[0] * len(shape)])
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(box)),
        properties=TensorProperties(dtype=dtype),
        size=torch.Size(whole),
    )
    return WriteItem(MetadataIndex(key, offsets), WriteItemType.SHARD, tensor_data=data)


class StreamedPlanner(DefaultSavePlanner):
    """Writes tensors, each read when it is written."""

    def __init__(self, tensors: Mapping[str, WriteItem], read: Callable[[str], Tensor]) -> None:
        super().__init__(flatten_state_dict=False)
        self._plan = SavePlan(list(tensors.values()))
        self._names = {item.index: name for name, item in tensors.items()}
        self._read = read

    def create_local_plan(self) -> SavePlan:
        """All tensors: there is one process."""
        return self._plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The tensor of an item, in the shape of its box."""
        assert write_item.tensor_data is not None
        return self._read(self._names[write_item.index]).view(write_item.tensor_data.chunk.sizes)
