"""Memory on each device: the plan against the allocator's peak, and the extra memory of saving and loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.checkpoint.load import load_checkpoint
from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.launch import launch
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from megatron.ltd.training.run import Run
from tests.distributed.test_fully_parallel_save import NewStorages
from tests.gpu.runs import flags
from tools.benchmark.memory import peak_bytes

WIDE = {
    "cuda": "--hidden-size 512 --num-attention-heads 8 --micro-batch-size 8 --train-iters 3",
    "cpu": "--hidden-size 64 --num-attention-heads 4 --seq-length 256 --train-iters 2",
}
"""Sizes for which activations dominate, by device"""
CLOSE = {"cuda": 0.15, "cpu": 0.05}
"""How close a plan is; a GPU's allocator rounds, and its kernels have workspaces"""

MOST_WHILE_SAVING = {"cuda": 1.25, "cpu": 0.25}
"""Besides the state, by device: a GPU's goes through the memory of the host, and a CPU's is written from where it is"""


def peak_on_gpu(work: Callable[[], object]) -> int:
    """The most memory that ``work`` allocates on the GPU, besides what is allocated before [bytes]."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with patch.object(torch.cuda, "reset_peak_memory_stats"):  # a run resets it at each step
        work()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(
    "more",
    [
        "",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--use-distributed-optimizer --reset-attention-mask",
    ],
    ids=["random-LTD", "recompute", "masks"],
)
def test_the_plan_predicts_the_peak_of_a_run(device: str, data: Path, tmp_path: Path, more: str) -> None:
    shape = f"--bf16 --eval-iters 0 {WIDE[device]} {more}"
    config = parse_run_config(flags(device, data, tmp_path, *shape.split()))
    measured = (peak_on_gpu if device == "cuda" else peak_bytes)(lambda: launch(config))
    assert plan_ahead(config).fullest.total == pytest.approx(measured, rel=CLOSE[device])


def state_of(run: Run) -> list[torch.Tensor]:
    """Weights, main weights and moments, of a run in bfloat16."""
    optimizer = run.state.optimizer
    weights = [parameter for chunk in run.state.chunks for parameter in chunk.parameters()]
    parts = [part.optimizer for part in getattr(optimizer, "chained_optimizers", [optimizer])]
    main_weights = [parameter for part in parts for group in part.param_groups for parameter in group["params"]]
    moments = [moment for part in parts for state in part.state.values() for moment in state.values()]
    return [tensor.detach() for tensor in (*weights, *main_weights, *moments)]


def one_step(run: Run) -> None:
    """Train one step without logging it, so that the optimizer has its state."""
    microbatches = run.microbatches_of(run.config.global_batch_size(1))
    run.stepper.train(run.batches(run.train_data, 0), run.method.plan(0), 0, microbatches)


def watched(device: str, work: Callable[[], object], held: list[torch.Tensor]) -> tuple[int, int]:
    """The most memory that the tensors of ``work`` take at once anywhere, and on the GPU [bytes]."""
    with NewStorages(held) as storages:
        on_gpu = 0
        if device == "cuda":
            on_gpu = peak_on_gpu(work)
        else:
            work()
    return storages.peak, on_gpu


@pytest.mark.parametrize("optimizer", [(), ("--use-distributed-optimizer",)], ids=["whole", "distributed"])
def test_saving_and_loading_hold_no_second_copy(
    device: str, data: Path, tmp_path: Path, optimizer: tuple[str, ...]
) -> None:
    """Saving copies a GPU's state once, to the host, and loading takes one tensor at a time."""
    save = ("--save", tmp_path, "--bf16", "--num-workers", 0, "--num-layers", 8, *optimizer)
    config = parse_run_config(flags(device, data, tmp_path / "log", *save))
    with initialize(config.parallel) as mesh:
        run = build_run(config, mesh)
        run.log.close()
        one_step(run)
        held = state_of(run)
        state = sum(tensor.nbytes for tensor in held)
        saving, on_gpu_saving = watched(device, run.save, held)
        expected = [tensor.clone() for tensor in held]
        for tensor in held:
            tensor.fill_(1.0)
        checkpoint = tmp_path / "iter_0000000"
        loading, on_gpu_loading = watched(
            device,
            lambda: load_checkpoint(checkpoint, run.state, weights_only=False, stored_in_low_precision=True),
            held,
        )
    assert all(map(torch.equal, held, expected))
    assert saving <= MOST_WHILE_SAVING[device] * state and loading <= 0.5 * state
    assert max(on_gpu_saving, on_gpu_loading) <= 0.25 * state
