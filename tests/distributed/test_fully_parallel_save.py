"""What saving costs each of four data-parallel processes: memory, and bytes in its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron.ltd.checkpoint.load import load_checkpoint
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from megatron.ltd.training.loop import train
from megatron.ltd.training.run import Run
from tests.distributed.pool import Pool
from tests.distributed.test_memory import LiveStorages
from tests.support import parse

pytestmark = pytest.mark.distributed

RANKS = 4
COMMAND = (
    "--num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 32 --micro-batch-size 1 --swiglu "
    "--tokenizer-type ByteTokenizer --split 1,0,0 --eval-iters 0 --lr 1e-3 --train-iters 1 --device cpu --bf16 "
    "--use-distributed-optimizer"
)


class NewStorages(LiveStorages):
    """Like ``LiveStorages``, without the storages of ``held``."""

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()
        self._held = {tensor.untyped_storage()._cdata for tensor in held}

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._held:
            super()._count(storage)


@dataclass(frozen=True)
class Cost:
    """Bytes of one process."""

    weights: int
    optimizer: int
    """Its own part."""
    while_saving: int
    """The most that was allocated."""
    while_loading: int
    largest: int
    """The largest tensor of the weights, in fp32."""
    file: int
    loads_what_was_saved: bool


def held_by(run: Run) -> list[Tensor]:
    """The tensors of weights and optimizer."""
    chunks, (part,) = run.state.chunks, run.state.optimizer.chained_optimizers
    buffers = [buffer for chunk in chunks for buffer in chunk.buffers]
    own = [parameter for group in part.optimizer.param_groups for parameter in group["params"]]
    moments = [value for state in part.optimizer.state.values() for value in state.values()]
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    return [*(buffer.param_data for buffer in buffers), *own, *moments, *parameters]


def save_and_load(flags: list[str], folder: Path) -> Cost:
    """On each rank: one step, then a save and a load of the same state, watched."""
    config = parse([*flags, "--save", str(folder)])
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        train(run)
        held = held_by(run)
        with NewStorages(held) as saving:
            run.save()
        saved = [tensor.detach().clone() for tensor in held]
        for tensor in held:
            tensor.detach().fill_(1.0)
        with NewStorages(held) as loading:
            load_checkpoint(folder / "iter_0000001", run.state, weights_only=False, stored_in_low_precision=True)
        run.log.close()
        parameters = list(run.state.chunks[0].parameters())
        (part,) = run.state.optimizer.chained_optimizers
        own = [parameter for group in part.optimizer.param_groups for parameter in group["params"]]
        return Cost(
            weights=sum(parameter.nbytes for parameter in parameters),
            optimizer=sum(3 * parameter.nbytes for parameter in own),
            while_saving=saving.peak,
            while_loading=loading.peak,
            largest=max(4 * parameter.numel() for parameter in parameters),
            file=(folder / f"iter_0000001/__{mesh.rank}_0.distcp").stat().st_size,
            loads_what_was_saved=all(map(torch.equal, held, saved)),
        )


def test_each_process_holds_and_writes_its_own_part(pool: Pool, dataset: str, tmp_path: Path) -> None:
    """No process ever has the state of another, in memory or on disk. Views are copied before they are written, and a
    tensor is read as bytes first."""
    flags = f"{COMMAND} --data-path {dataset} --log-dir {tmp_path}".split()
    costs = pool.run(save_and_load, flags, tmp_path / "run", world_size=RANKS)
    assert all(cost.loads_what_was_saved for cost in costs)
    for cost in costs:
        own = cost.optimizer + cost.weights / RANKS
        assert cost.while_saving <= 1.05 * own
        assert cost.while_loading <= 1.05 * 2 * cost.largest
        assert cost.file == pytest.approx(own, rel=0.1)


def test_the_first_process_writes_all_weights_where_that_is_asked_for(pool: Pool, dataset: str, tmp_path: Path) -> None:
    flags = f"{COMMAND} --data-path {dataset} --log-dir {tmp_path} --no-ckpt-fully-parallel-save".split()
    first, second = pool.run(save_and_load, flags, tmp_path / "run", world_size=2)
    assert first.loads_what_was_saved and second.loads_what_was_saved
    assert first.file == pytest.approx(first.optimizer + first.weights, rel=0.1)
    assert second.file == pytest.approx(second.optimizer, rel=0.1)
