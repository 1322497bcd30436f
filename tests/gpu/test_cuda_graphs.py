"""Runs with layers as CUDA graphs against the same runs without; on a CPU the graphs are a stand-in's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.gpu.runs import column, train
from tests.stand_ins import cuda_graphs

STAGES = {
    "cuda": "--ltd-granularity 64 --ltd-growth-steps 30 --train-iters 36 --cuda-graph-warmup-steps 1".split(),
    "cpu": "--ltd-granularity 16 --cuda-graph-warmup-steps 1".split(),
}
"""Stages of kept tokens, by device: each of ten steps and twenty microbatches where graphs are real"""
VARIANTS = {
    "fp32": (),
    "bf16, masks": ("--bf16", "--reset-attention-mask", "--reset-position-ids"),
    "dropout": ("--attention-dropout", "0.1", "--hidden-dropout", "0.1"),
    "SwiGLU": ("--bf16", "--swiglu", "--disable-bias-linear", "--normalization", "RMSNorm"),
    "fp16": ("--fp16", "--loss-scale", "1024"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_graphs_compute_the_same(device: str, data: Path, tmp_path: Path, impl: str, name: str) -> None:
    """Over changes of K, with two microbatches a step, on the default kernels; other dropout would change losses."""
    if name == "fp16" and device == "cpu":
        pytest.skip("fp16 is for GPUs")
    flags = ("--transformer-impl", impl, "--no-gradient-accumulation-fusion", *VARIANTS[name], *STAGES[device][:-2])
    expected = train(device, data, tmp_path / "eager", *flags)
    with contextlib.ExitStack() as stack:
        if device == "cpu":
            stack.enter_context(cuda_graphs.on_cpu())
        graphs = ("--device", "auto", "--cuda-graph-impl", "local", *STAGES[device][-2:])
        found = train(device, data, tmp_path / "graphs", *flags, *graphs)
    assert len(set(column(found, "kept_tokens"))) > 2 and len(found) == len(expected)
    if device == "cpu":
        assert column(found, "loss") == column(expected, "loss")
        assert column(found, "grad_norm") == column(expected, "grad_norm")
        return
    for measure, close in (("loss", 1e-4), ("grad_norm", 1e-2)):
        assert column(found, measure)[:12] == pytest.approx(column(expected, measure)[:12], rel=close)
    assert column(found, "loss") == pytest.approx(column(expected, "loss"), rel=2e-2)
