"""Reads the requested tensors and the plain values from the files of a checkpoint.

The files are not trusted: the description of the tensors is checked against the files (``safe_metadata``) and against
the model, and only tensors and plain values are loaded. Every fault in them is a ``UserError``.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, maybe_load_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME, TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from megatron.ltd.checkpoint.part_checksums import damaged_tensor
from megatron.ltd.checkpoint.safe_metadata import UnsafeCheckpoint, read_metadata, tensors_only
from megatron.ltd.errors import RunStopped, UserError, quiet_log
from megatron.ltd.parallel.agreement import together

FORMAT = ("torch_dist", 1)
EXTRA_STATE = "_extra_state"
"""The end of the names of a module's state that is not a tensor."""
_NO_WEIGHT = re.compile(rf"^(chained_\d+\.)?optimizer\.|^rng_state|^rerun_state_machine|{EXTRA_STATE}")
"""Names of Megatron-LM's tensors and objects that are not weights."""
_ANOTHER = "use a checkpoint of a model that this program has"
_EMPTY_BYTES = 1 << 14
"""More than an empty extra state takes in a file."""
_MACHINES_FAULT = (OSError, torch.OutOfMemoryError, torch.distributed.DistError)


def read(checkpoint: Path, wanted: Mapping[str, Any], readers: ProcessGroup | None = None) -> dict[str, Any]:
    """The tensors of ``checkpoint`` that ``wanted`` describes. Every rank calls this.

    ``readers``: processes that share the reading of what all of them want; None lets each read all that it wants.
    Raises ``UserError`` if the checkpoint holds anything but tensors and plain values, or other tensors.
    """
    metadata = described(checkpoint)
    _check_format(checkpoint)
    _check_wanted(checkpoint, wanted, metadata)
    _check_extra_states(checkpoint, metadata)
    return _load(checkpoint, wanted, metadata, readers)


def read_weights(checkpoint: Path, wanted: Mapping[str, Any], readers: ProcessGroup | None = None) -> dict[str, Any]:
    """The weights that ``wanted`` describes in a checkpoint that Megatron-LM wrote. Every rank calls this.

    Optimizer, random state and states of fp8 are not opened. Raises ``UserError`` as ``read``, and for weights that no
    rank wants: they would be another model's.
    """
    metadata = described_weights(checkpoint)
    _check_wanted(checkpoint, wanted, metadata, whole=True)
    names: list[set[str]] = [set()] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(names, {tensor.key for tensor in _sharded_tensors(wanted)})
    other = sorted(metadata.state_dict_metadata.keys() - set().union(*names))
    if other:
        raise refusal(checkpoint, f"it has {other[0]}, which the model of these flags lacks", _ANOTHER)
    with together():
        check_parts(checkpoint, metadata, torch.distributed.get_rank(), torch.distributed.get_world_size())
    return _load(checkpoint, wanted, metadata, readers)


def _load(
    checkpoint: Path, wanted: Mapping[str, Any], metadata: Metadata, readers: ProcessGroup | None
) -> dict[str, Any]:
    """Read what was checked. All ranks learn of an error in a file before tensors are exchanged, so that none waits."""
    strategy = TorchDistLoadShardedStrategy()
    if readers is not None:
        strategy = FullyParallelLoadStrategyWrapper(strategy, readers, exchange_algo="broadcast")
    with reading(checkpoint, metadata), quiet_core():
        return dist_checkpointing.load(wanted, str(checkpoint), strategy, _NoPlainValues())


@contextmanager
def reading(checkpoint: Path, metadata: Metadata) -> Iterator[None]:
    """A block that reads ``checkpoint`` under ``tensors_only``; errors that its files cause become ``UserError``."""
    try:
        with tensors_only(metadata):
            yield
    except (Exception, CheckpointException) as error:
        failures = [failure for failure, _ in getattr(error, "failures", {0: (error, None)}).values()]
        for failure in failures:
            if isinstance(failure, RunStopped) or not isinstance(failure, Exception):  # Ctrl-C, which torch wraps
                raise failure from None
        if any(_is_of_the_machine(failure) for failure in failures):
            raise
        raise refusal(checkpoint, _failure(failures[0])) from None


def _is_of_the_machine(failure: BaseException) -> bool:
    """Whether the machine failed, not the checkpoint."""
    if isinstance(failure, OSError) and failure.errno in (errno.ENOENT, errno.EINVAL):  # EINVAL: seeking before a file
        return False
    return isinstance(failure, _MACHINES_FAULT)


class _NoPlainValues(TorchCommonLoadStrategy):
    """Megatron-Core would merge the plain values into the tensors, whatever their names."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """None: see ``read_plain``."""
        return {}


def read_plain(checkpoint: Path) -> dict[str, Any]:
    """The values in ``checkpoint`` that are not tensors. Raises ``UserError`` if they are not plain values."""
    with reading(checkpoint, Metadata({})):
        values = torch.load(checkpoint / COMMON_STATE_FNAME, map_location="cpu", weights_only=True)
    if not isinstance(values, dict):
        raise refusal(checkpoint, f"its {COMMON_STATE_FNAME} is not a dictionary")
    return values


def refusal(checkpoint: Path, what: str, remedy: str = "use one from a source that you trust") -> UserError:
    """The error for a checkpoint with the fault ``what``."""
    return UserError(f"checkpoint {checkpoint} is not loaded: {what}; {remedy}")


def described(checkpoint: Path, is_left_out: Callable[[str], bool] = lambda name: False) -> Metadata:
    """The description of the tensors in ``checkpoint``. Raises ``UserError`` if it is damaged or has more."""
    try:
        return read_metadata(checkpoint, is_left_out)
    except UnsafeCheckpoint as error:
        raise refusal(checkpoint, str(error)) from None


def described_weights(checkpoint: Path) -> Metadata:
    """The description of the weights alone in a checkpoint that Megatron-LM wrote. Raises ``UserError``."""
    metadata = described(checkpoint, lambda name: _NO_WEIGHT.search(name) is not None)
    _check_format(checkpoint)
    entries = metadata.state_dict_metadata.items()
    tensors: dict[str, Any] = {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}
    return dataclasses.replace(metadata, state_dict_metadata=tensors)


def check_parts(checkpoint: Path, metadata: Metadata, share: int = 0, shares: int = 1) -> None:
    """Raise ``UserError`` for weights that have changed since Megatron-LM wrote them; see ``part_checksums``."""
    damaged = damaged_tensor(checkpoint, metadata, share, shares)
    if damaged is not None:
        raise refusal(checkpoint, f"{damaged} has changed since it was written", "restore it from a copy")


def _check_format(checkpoint: Path) -> None:
    """Refuse other formats, which Megatron-Core reads in other ways."""
    try:
        found = maybe_load_config(str(checkpoint))
    except (ValueError, TypeError, RecursionError):
        found = None
    if found != CheckpointingConfig(*FORMAT):
        raise refusal(checkpoint, f"its metadata.json does not name the format {FORMAT[0]}")


def _check_wanted(checkpoint: Path, wanted: Mapping[str, Any], metadata: Metadata, *, whole: bool = False) -> None:
    """``whole``: also the rows of the vocabulary must be as many."""
    for tensor in _sharded_tensors(wanted):
        _check_tensor(checkpoint, tensor, metadata.state_dict_metadata.get(tensor.key), whole)


def _sharded_tensors(wanted: Mapping[str, Any]) -> Iterator[ShardedTensor]:
    for part in nested_values(wanted):
        built = nested_values(part.build()) if isinstance(part, ShardedTensorFactory) else [part]
        yield from (tensor for tensor in built if isinstance(tensor, ShardedTensor))


def _check_tensor(checkpoint: Path, tensor: ShardedTensor, entry: Any, whole: bool) -> None:
    if not isinstance(entry, TensorStorageMetadata):
        raise refusal(checkpoint, f"tensor {tensor.key} of the model is missing")
    shape, wanted = tuple(entry.size), tuple(tensor.global_shape)
    if len(shape) != len(wanted) or (shape != wanted and (whole or not tensor.allow_shape_mismatch)):
        raise refusal(checkpoint, f"its tensor {tensor.key} has shape {list(shape)}, and the model's {list(wanted)}")


def _check_extra_states(checkpoint: Path, metadata: Metadata) -> None:
    """Refuse extra states that hold anything. Earlier versions wrote empty ones; this one neither writes nor loads any.

    Of Transformer Engine's modules they are pickles of the state of fp8, which this program stores as tensors.
    """
    for index in metadata.storage_data:
        if EXTRA_STATE in index.fqn and not _is_empty(checkpoint, metadata, index):
            raise refusal(checkpoint, f"its {index.fqn} is not empty, and pickles of fp8 are not loaded")


def _is_empty(checkpoint: Path, metadata: Metadata, index: MetadataIndex) -> bool:
    """Whether an object in a checkpoint is None or an empty tensor."""
    place = metadata.storage_data[index]
    if place.length > _EMPTY_BYTES:
        return False
    with reading(checkpoint, metadata), (checkpoint / place.relative_path).open("rb") as file:
        file.seek(place.offset)
        (value,) = torch.load(io.BytesIO(file.read(place.length)), map_location="cpu", weights_only=True)
        return value is None or value.numel() == 0


def _failure(error: BaseException) -> str:
    if not isinstance(error, pickle.UnpicklingError):
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"its files do not hold what they describe ({what})"
    # the name that torch's weights_only refuses, from its long message
    found = re.search(r"(?:GLOBAL|[Gg]lobal:?) ([\w.]+)", str(error))
    named = found.group(1) if found else type(error).__name__
    return f"it holds something other than tensors and plain values ({named})"


@contextmanager
def quiet_core() -> Iterator[None]:
    """Silence warnings about Megatron-Core's use of torch's checkpoints, which a user cannot change, and its log lines.

    Errors are raised as well as logged.
    """
    with quiet_log("megatron.core.dist_checkpointing"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
