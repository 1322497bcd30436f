"""Layers as CUDA graphs on several ranks against the same ranks without them, bit for bit, on the stand-in."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.jobs import train_with_graphs
from tests.distributed.layouts import LAYOUTS, VARIANTS, one_process
from tests.distributed.runs import ON_GPUS, Runs, Tolerance, assert_same

pytestmark = pytest.mark.distributed

SAME_BITS = Tolerance(loss=0.0, gradient=0.0)
CASES = [("tp2 sp", "document masks"), ("dp2 sharded overlaps", "learned positions"), ("tp2 sp dp2", "blocks")]
FIVE_STEPS = ("--train-iters", "5", "--ltd-growth-steps", "6")
"""K is 8, 8, 16, 16 and 24."""
DROPOUT = ("--attention-dropout", "0.1", "--hidden-dropout", "0.1")


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_equals_the_layout_without_graphs(runs: Runs, name: str, variant: str) -> None:
    """Five steps of four microbatches during which K changes, with dropout, collectives inside and outside of graphs,
    and hooks of data parallelism that gather weights and reduce gradients.
    """
    layout, flags = LAYOUTS[name], (*VARIANTS[variant], *DROPOUT, *FIVE_STEPS)
    graphed = runs.run(layout, *flags, job=train_with_graphs)
    assert len({kept for _, _, kept in graphed.kept}) > 2
    assert_same(graphed, runs.run(layout, *flags), SAME_BITS)


def test_layers_of_transformer_engine(engine_runs: Runs) -> None:
    """Those of its stand-in, under tensor and sequence parallelism."""
    flags = (*VARIANTS["RoPE"], "--no-gradient-accumulation-fusion", *FIVE_STEPS)
    layout = LAYOUTS["tp2 sp"]
    graphed = engine_runs.run(layout, *flags, job=train_with_graphs)
    assert_same(graphed, engine_runs.run(layout, *flags), SAME_BITS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["one process", "tp2 sp", "dp2 sharded overlaps"])
def test_equals_the_gpus_without_graphs(gpu_runs: Runs, name: str) -> None:
    """The same on real graphs, with NCCL inside those of tensor parallelism."""
    layout = LAYOUTS[name] if name in LAYOUTS else one_process(strata=1)
    if torch.cuda.device_count() < layout.world_size:
        pytest.skip(f"needs {layout.world_size} CUDA devices")
    flags = (*VARIANTS["document masks"], *FIVE_STEPS)
    assert_same(gpu_runs.run(layout, *flags, job=train_with_graphs), gpu_runs.run(layout, *flags), ON_GPUS)
