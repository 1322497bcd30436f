"""Reading a checkpoint must not run code that it carries.

Tensors and plain values are read with torch's ``weights_only``. What is left is ``.metadata``, which torch's distributed checkpoint
unpickles with everything allowed. ``check_metadata`` unpickles it first with nothing allowed but the classes that describe
tensors, and ``weights_only_loading`` forces ``weights_only`` on loads deeper down that would switch it off.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ALLOWED = {
    "builtins": {"set", "frozenset", "slice", "getattr"},
    "collections": {"OrderedDict", "defaultdict"},
    "torch": {"Size", "device", "strided", "contiguous_format", "preserve_format"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreSavePlan", "MCoreMetadata"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}  # fmt: skip


class UnsafeCheckpoint(Exception):
    """A checkpoint's metadata names something other than tensor descriptions."""


class _DescriptionsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _ALLOWED.get(module, ()):
            raise UnsafeCheckpoint(f"it names {module}.{name}, which describes no tensor")
        return super().find_class(module, name)


def check_metadata(checkpoint: Path) -> None:
    """Raise ``UnsafeCheckpoint`` if the ``.metadata`` of ``checkpoint`` would do more than describe tensors."""
    with (checkpoint / ".metadata").open("rb") as file:
        _DescriptionsOnly(file).load()


@contextmanager
def weights_only_loading() -> Iterator[None]:
    """Every ``torch.load`` inside the block refuses anything but tensors and plain values."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
