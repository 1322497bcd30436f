"""What each of four data-parallel processes reads of a checkpoint, with and without ``--ckpt-fully-parallel-load``.

What is loaded is the same, bit for bit, and a damaged file ends every process with the same line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import FileSystemReader

from megatron.ltd.checkpoint.load import load_checkpoint
from megatron.ltd.errors import UserError
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import Run, build_run
from megatron.ltd.training.loop import train
from tests.distributed.pool import Pool
from tests.distributed.test_fully_parallel_save import COMMAND, RANKS, NewStorages
from tests.support import parse

pytestmark = pytest.mark.distributed

FLAGS = COMMAND.replace("--use-distributed-optimizer", "").split()
_HEADERS = 0.05
"""Every tensor in a file has a header of torch, of about a kilobyte."""


@dataclass(frozen=True)
class Loaded:
    """Bytes of one process."""

    apart: int
    """Bytes read where every process reads what it needs."""
    shared: int
    """Bytes read where the data-parallel processes share the reading."""
    held_while_sharing: int
    """The most that was allocated beside the state that is loaded."""
    weights: int
    moments: int
    """The optimizer's state on this process, main weights included."""
    largest: int
    """The largest tensor of the weights, in fp32."""
    refusal: str
    """The error of sharing the reading of a file that is damaged."""


class Counted:
    """The bytes that are read from the files of tensors within the block."""

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> Counted:
        self._slice: Callable[..., Any] = FileSystemReader._slice_file

        def counted(reader: FileSystemReader, file: Any, place: Any) -> Any:
            self.bytes += place.length
            return self._slice(reader, file, place)

        FileSystemReader._slice_file = counted  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        FileSystemReader._slice_file = self._slice  # type: ignore[method-assign]


def state_of(run: Run) -> list[Tensor]:
    """Weights and the optimizer's state; loading may replace the tensors of a plain one."""
    (part,) = run.state.optimizer.chained_optimizers
    own = [parameter for group in part.optimizer.param_groups for parameter in group["params"]]
    moments = [part.optimizer.state[parameter][name] for parameter in own for name in ("exp_avg", "exp_avg_sq")]
    return [*(parameter for chunk in run.state.chunks for parameter in chunk.parameters()), *own, *moments]


def load_both_ways(flags: list[str], folder: Path) -> Loaded:
    """Train a step and save; then load twice, each time into memory that held something else, and damage a file."""
    config, checkpoint = parse([*flags, "--save", str(folder)]), folder / "iter_0000001"
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        train(run)
        run.save()
        run.log.close()
        saved = [tensor.detach().clone() for tensor in state_of(run)]

        def load(readers: ProcessGroup | None) -> tuple[int, int]:
            """Bytes read, and bytes held at most."""
            for tensor in state_of(run):
                tensor.detach().fill_(1.0)
            with Counted() as counted, NewStorages(state_of(run)) as storages:
                load_checkpoint(
                    checkpoint, run.state, weights_only=False, stored_in_low_precision=True, readers=readers
                )
            assert all(map(torch.equal, state_of(run), saved))
            return counted.bytes, storages.peak

        (apart, _), (shared, held) = load(None), load(mesh.groups.dp_cp)
        if mesh.is_first:
            damaged = checkpoint / f"__{RANKS - 1}_0.distcp"
            damaged.write_bytes(bytes(damaged.stat().st_size))
        dist.barrier()
        with pytest.raises(UserError) as refusal:
            load(mesh.groups.dp_cp)
        parameters = list(run.state.chunks[0].parameters())
        weights = sum(parameter.nbytes for parameter in parameters)
        return Loaded(
            apart=apart,
            shared=shared,
            held_while_sharing=held,
            weights=weights,
            moments=sum(tensor.nbytes for tensor in saved) - weights,
            largest=max(4 * parameter.numel() for parameter in parameters),
            refusal=str(refusal.value),
        )


@pytest.mark.parametrize("optimizer", ["plain", "distributed"])
def test_each_process_reads_its_share(pool: Pool, dataset: str, tmp_path: Path, optimizer: str) -> None:
    """With the plain optimizer all that is loaded is on every process, with the distributed one the weights are.

    On a GPU tensors are received where they belong; on a CPU Megatron-Core receives them beside that.
    """
    flags = [*FLAGS, "--data-path", dataset, "--log-dir", str(tmp_path)]
    flags += ["--use-distributed-optimizer"] if optimizer == "distributed" else []
    processes = pool.run(load_both_ways, flags, tmp_path / "run", world_size=RANKS)
    for one in processes:
        alike = one.weights + (one.moments if optimizer == "plain" else 0)
        own = one.weights + one.moments - alike
        assert one.apart == pytest.approx(own + alike, rel=_HEADERS)
        assert one.shared == pytest.approx(own + alike / RANKS, rel=_HEADERS)
        if optimizer == "distributed":
            assert one.held_while_sharing <= one.weights + 2 * one.largest
    assert "is not loaded" in processes[0].refusal
    assert {one.refusal for one in processes} == {processes[0].refusal}
