"""The memory that a plan predicts for each process of a layout, compared with the tensors that are alive there.

Every storage that an operation returns is counted until it is freed. Copies that gloo makes in its own threads are not
counted: NCCL has other buffers, and plans leave both out. ``tests/unit/forecast/test_memory.py`` tests one process.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from megatron.ltd.forecast.forecast import plan_ahead
from tests.distributed.pool import Pool
from tests.support import parse

SHAPE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 256 --micro-batch-size 2 "
    "--attention-dropout 0 --hidden-dropout 0 --tokenizer-type ByteTokenizer --split 1,0,0 --eval-iters 0 --lr 1e-3 "
    "--train-iters 2 --device cpu"
)
_PP = "--pipeline-model-parallel-size 2 --global-batch-size 16"
_FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
_LTD = "--random-ltd --ltd-schedule constant --ltd-min-kept-tokens 128"
CASES = {
    "tp2": "--tensor-model-parallel-size 2",
    "tp2 sp random-LTD": f"--tensor-model-parallel-size 2 --sequence-parallel {_LTD} --ltd-strata 2",
    "cp2": "--context-parallel-size 2",
    "pp2": _PP,
    "pp2 interleaved": f"{_PP} --num-layers-per-virtual-pipeline-stage 1",
    "pp2 recomputed": f"{_PP} {_FULL}",
    "dp2 sharded": "--use-distributed-optimizer",
    "dp2 sharded bf16": "--use-distributed-optimizer --bf16",
}


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operations have returned and that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = function(*args, **(kwargs or {}))
        for value in tree_iter(returned):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return returned

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._forget, key)
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def measure(flags: list[str]) -> tuple[int, int]:
    """The memory that the plan predicts for this rank's pipeline stage, and the measured peak [bytes]."""
    from megatron.ltd.launch import launch

    config = parse(flags)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    stages = plan_ahead(config, world_size).memory
    planned = stages[rank * len(stages) // world_size]  # the pipeline stage is the slowest-varying part of a rank
    with LiveStorages() as storages:
        launch(config)
    return planned.total, storages.peak


@pytest.mark.distributed
@pytest.mark.parametrize("flags", CASES.values(), ids=CASES.keys())
def test_every_process_holds_what_was_planned(flags: str, pool: Pool, dataset: str, tmp_path: Path) -> None:
    command = [*SHAPE.split(), *flags.split(), "--data-path", dataset, "--log-dir", str(tmp_path)]
    for planned, measured in pool.run(measure, command, world_size=2):
        assert planned == pytest.approx(measured, rel=0.05)
