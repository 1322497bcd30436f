"""The files of a checkpoint that one rank writes: its share of the state, in Megatron-Core's format ``torch_dist``.

    __<rank>_0.distcp   the rank's tensors          rank 0 also:  common.pt       what is not sharded
                                                                  metadata.json   the format's name
                                                                  .metadata       which tensor lies where, at the end

Megatron-Core lays out the plan, collects the tensors and writes them. When, and in which process, is not decided here.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace
from megatron.core.dist_checkpointing.exchange_utils import determine_main_replica_uniform_distribution
from megatron.core.dist_checkpointing.serialization import get_default_save_common_strategy
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    distribute_main_replicas_with_precomputed_distribution,
)
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed import ProcessGroup

from megatron.ltd.checkpoint import files
from megatron.ltd.checkpoint.fp8_state import scaling_state
from megatron.ltd.checkpoint.load import TrainingState, learned_state, model_state
from megatron.ltd.checkpoint.optimizer_state import SHARDING, stored_optimizer
from megatron.ltd.checkpoint.read import FORMAT, quiet_core


@dataclass(frozen=True)
class Written:
    """A rank's share: the places of its tensors, and size and checksum of each file."""

    results: list[Any]
    files: dict[str, dict[str, int]]


class _Strategy(TorchDistSaveShardedStrategy):
    """Megatron-Core's strategy, stopped before it writes files."""

    def _get_save_and_finalize_callbacks(self, writer: FileSystemWriterAsync, planned: Any) -> Any:
        self.writer, self.index = writer, planned[1]
        return super()._get_save_and_finalize_callbacks(writer, planned)


class RankPlan:
    """What this rank writes of ``state``. Made on all ranks together; nothing is written yet.

    ``writers``: the processes that share what all of them hold; None leaves it to the first of them. With ``copies`` no
    tensor is shared with ``state``, which may change before the files are written; without, those on the CPU are.
    ``weights_only`` leaves the optimizer out.
    """

    def __init__(
        self,
        partial: Path,
        state: TrainingState,
        *,
        writers: ProcessGroup | None,
        check_layout: bool,
        copies: bool,
        weights_only: bool,
    ) -> None:
        self._partial = partial
        with quiet_core():
            sharded, common = save_preprocess(_content(state, weights_only), check_layout)
            if writers is not None:
                distribution = determine_main_replica_uniform_distribution(sharded, writers)
                distribute_main_replicas_with_precomputed_distribution(sharded, writers, distribution)
            # Results are returned by this module: Megatron-Core need not start a process that collects them.
            filesystem_async._results_queue = queue.SimpleQueue()
            strategy = _Strategy(*FORMAT, thread_count=1)
            strategy.async_save(sharded, partial)

        def on_cpu(value: Any) -> Any:
            return value.detach().to("cpu", copy=copies) if isinstance(value, torch.Tensor) else value

        self._writer, self._index = strategy.writer, strategy.index
        self._buckets = [
            (path, name, (raw, [(item, on_cpu(tensor)) for item, tensor in _drained(tensors)]))
            for path, name, (raw, tensors) in self._writer.write_buckets
        ]
        self._writer.write_buckets = []  # the tensors of ``state`` are not kept
        self._common = dict_list_map_outplace(on_cpu, common) if dist.get_rank() == 0 else None

    def write_files(self, check: Callable[[], None]) -> Written:
        """Write this rank's files, calling ``check`` between tensors. The part that may run in another thread."""
        names, results = [], []
        if self._common is not None:
            get_default_save_common_strategy().save_common(self._common, self._partial)
            save_config(CheckpointingConfig(*FORMAT), str(self._partial))
            names += [COMMON_STATE_FNAME, CONFIG_FNAME]
        for bucket in self._buckets:
            results += self._write_bucket(bucket, check)
            names.append(bucket[1])
        check()
        return Written(results, files.written_checksums(self._partial, names))

    def _write_bucket(self, bucket: Any, check: Callable[[], None]) -> list[Any]:
        """Write one file of tensors. Returns their places in it."""
        path, name, (raw, tensors) = bucket
        bucket = path, name, (raw, _checked(tensors, check))
        transforms = [self._writer.transforms] if hasattr(self._writer, "transforms") else []
        running: queue.Queue[int] = queue.Queue()
        running.put(0)
        written: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, written, running, use_fsync=True)
        outcome = written.get()[1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def write_index(self, results: list[list[Any]]) -> None:
        """Write ``.metadata``, the places of all ranks' tensors, on rank 0."""
        self._writer.finish(self._index, results)


def _content(state: TrainingState, weights_only: bool) -> dict[str, Any]:
    weights = model_state(state.chunks)
    rest: dict[str, Any] = {}
    if not weights_only:
        rest = {"optimizer": stored_optimizer(state.optimizer, weights), **scaling_state(state.chunks)}
    return {
        "checkpoint_version": 3.0,
        "iteration": state.progress.iteration,
        **weights,
        **rest,
        "opt_param_scheduler": state.scheduler.state_dict(),
        **learned_state(state.learned_V),
        "content_metadata": SHARDING,
    }


def _drained(items: list[Any]) -> Iterator[Any]:
    """The items, each of which the list holds no longer."""
    items.reverse()
    while items:
        yield items.pop()


def _checked(tensors: Iterable[Any], check: Callable[[], None]) -> Iterator[Any]:
    for tensor in tensors:
        check()
        yield tensor
