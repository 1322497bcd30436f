"""Every layout trains the same model as one process: weights, samples, kept tokens, losses and every gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.distributed.jobs import train_without_waiting
from tests.distributed.layouts import (
    GLOBAL_BATCH_SIZE,
    LAYOUT_CASES,
    LAYOUTS,
    NUM_STEPS,
    RECOMPUTE,
    RECOMPUTE_CASES,
    RECOMPUTED_LAYOUTS,
    VARIANTS,
)
from tests.distributed.pool import JobFailed, Pool
from tests.distributed.runs import ON_GPUS, Runs, assert_same, whole

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(("name", "variant"), LAYOUT_CASES)
def test_equals_one_process(runs: Runs, name: str, variant: str) -> None:
    """Train three steps, each with another K, with several microbatches in flight; initial weights are bit-equal."""
    layout, flags = LAYOUTS[name], VARIANTS[variant]
    assert_same(runs.run(layout, *flags), runs.reference(layout.strata, *flags))


@pytest.mark.parametrize(("name", "mode", "variant"), RECOMPUTE_CASES)
def test_recompute_changes_nothing(runs: Runs, name: str, mode: str, variant: str) -> None:
    """Compare with one process that does not recompute."""
    layout, flags = RECOMPUTED_LAYOUTS[name], VARIANTS[variant]
    assert_same(runs.run(layout, *flags, *RECOMPUTE[mode]), runs.reference(layout.strata, *flags))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "variant"), LAYOUT_CASES)
def test_equals_one_gpu(gpu_runs: Runs, name: str, variant: str) -> None:
    """The same with NCCL, if there is a GPU for each rank."""
    layout, flags = LAYOUTS[name], VARIANTS[variant]
    if torch.cuda.device_count() < layout.world_size:
        pytest.skip(f"needs {layout.world_size} CUDA devices")
    assert_same(gpu_runs.run(layout, *flags), gpu_runs.reference(layout.strata, *flags), ON_GPUS)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", RECOMPUTE)
def test_recompute_changes_nothing_on_a_gpu(gpu_runs: Runs, mode: str) -> None:
    flags = (*VARIANTS["RoPE"], *VARIANTS["document masks"])
    layout = RECOMPUTED_LAYOUTS["one process"]
    assert_same(gpu_runs.run(layout, *flags, *RECOMPUTE[mode]), gpu_runs.reference(layout.strata, *flags), ON_GPUS)


@pytest.mark.parametrize("name", ["dp2 sharded overlaps", "pp2 interleaved dp2 sharded overlaps"])
def test_a_result_that_is_read_too_early_is_seen(pool: Pool, runs: Runs, name: str) -> None:
    """The comparisons of overlapping layouts are only meaningful if a missing ``wait`` changes what is computed."""
    layout = LAYOUTS[name]
    with pytest.raises(JobFailed, match="the loss of step . is nan"):
        pool.run(train_without_waiting, [*runs.command, *layout.flags], world_size=layout.world_size)


def test_reference_drops_tokens_and_trains_every_tensor(runs: Runs) -> None:
    """The comparisons above are only meaningful if K changes, every dropping layer selects tokens, and no gradient is
    zero.
    """
    run = runs.reference(1, *VARIANTS["document masks"])
    assert sorted({kept for _, _, kept in run.kept}) == [8, 16, 24]
    assert {layer for _, layer, _ in run.kept} == {2, 3, 4, 5}
    assert {sample for sample, _, _ in run.kept} == set(run.samples) == set(range(NUM_STEPS * GLOBAL_BATCH_SIZE))
    assert min(run.grad_norm) > 0.2, "the clipping is in force"
    for pieces in run.gradients:
        gradients = whole(pieces)
        assert len(gradients) == 2 + 6 * 12 + 2
        assert all(np.linalg.norm(gradient) > 1e-5 for gradient in gradients.values())
