"""fp8: its flags, the sizes that its kernels take, and the plan. Runs through a stand-in: ``tests/distributed``."""

from __future__ import annotations

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.config import RunConfig
from megatron.ltd.forecast.config import FP8_TFLOPS, PEAK_TFLOPS, PlanConfig
from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.training.throughput import published_peak
from tests.support import core_config, small_model, world
from tests.support_errors import refused

RUN = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --micro-batch-size 2 --train-iters 8 "
    "--global-batch-size 8 --vocab-size 128 --lr 1e-3 --bf16"
)
LTD = "--random-ltd --ltd-growth-steps 8 --ltd-min-kept-tokens"


def config(flags: str) -> RunConfig:
    return parse_run_config(f"{RUN} {flags}".split())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--fp8-recipe tensorwise", ["--fp8-recipe tensorwise", "--fp8-format"]),
        ("--first-last-layers-bf16", ["--first-last-layers-bf16", "--fp8-format"]),
        ("--fp8-format hybrid --first-last-layers-bf16", ["--first-last-layers-bf16", "delayed", "tensorwise"]),
        (
            "--fp8-format e4m3 --num-layers-at-end-in-bf16 2",
            ["--num-layers-at-end-in-bf16 2", "--first-last-layers-bf16"],
        ),
        ("--fp8-format e4m3 --fp8-recipe mxfp8 --fp8-margin 1", ["--fp8-margin 1", "--fp8-recipe delayed"]),
        ("--fp8-format hybrid --transformer-impl local", ["--fp8-format hybrid", "--transformer-impl local"]),
        ("--fp8-format hybrid --hidden-size 72", ["--hidden-size 72", "multiple of 16"]),
        ("--fp8-format hybrid --kv-channels 6", ["4 heads of size 6", "multiple of 16"]),
        ("--fp8-format hybrid --ffn-hidden-size 48 --tensor-model-parallel-size 2", ["MLP, 48", "24 on each of", "16"]),
        ("--fp8-format e4m3 --fp8-recipe mxfp8 --ffn-hidden-size 48", ["mxfp8", "MLP, 48", "multiple of 32"]),
        (
            "--fp8-format e4m3 --fp8-recipe blockwise --sequence-parallel --tensor-model-parallel-size 2",
            ["--hidden-size 64", "multiple of 128"],
        ),
        (
            "--fp8-format e4m3 --fp8-recipe mxfp8 --first-last-layers-bf16 --num-layers-at-start-in-bf16 3",
            ["--first-last-layers-bf16", "none of the layers in fp8"],
        ),
        (
            "--fp8-format e4m3 --fp8-recipe tensorwise --first-last-layers-bf16 --num-layers-at-start-in-bf16 3 "
            "--num-layers-at-end-in-bf16 0 --pipeline-model-parallel-size 2",
            ["--num-layers-at-start-in-bf16 3", "at most 2"],
        ),
    ],
)
def test_flags_and_sizes_that_are_refused(flags: str, said: list[str]) -> None:
    with refused(*said):
        config(flags)


def test_fp8_needs_bf16() -> None:
    for other in ({}, {"fp16": True}):
        with refused("--fp8-format hybrid", "--bf16"):
            PrecisionConfig(fp8_format="hybrid", **other)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (f"{LTD} 24 --ltd-granularity 12", ["36 kept tokens", "multiple of 16", "--ltd-granularity 8"]),
        (f"{LTD} 20 --ltd-granularity 4", ["52 kept tokens x --micro-batch-size 2", "keep multiples of 8"]),
        ("--seq-length 52", ["52 tokens x --micro-batch-size 2", "--seq-length must be a multiple of 8", "of 4"]),
        ("--fp8-recipe mxfp8 --seq-length 72", ["72 tokens", "multiple of 32", "--seq-length must be"]),
        (
            f"--sequence-parallel --tensor-model-parallel-size 2 {LTD} 24 --ltd-strata 2 --ltd-granularity 8",
            ["56 kept tokens", "16 on each of 2 processes", "--ltd-granularity 16"],
        ),
        (
            f"--context-parallel-size 2 {LTD} 24 --ltd-strata 4 --ltd-granularity 8",
            ["56 kept tokens", "16 on each of 2 processes", "multiple of 4"],
        ),
    ],
)  # fmt: skip
def test_a_plan_with_tokens_that_kernels_do_not_take_is_refused(flags: str, said: list[str]) -> None:
    """Unless the same is planned without fp8."""
    chosen = config(f"--fp8-format hybrid {flags}")
    plan_ahead(config(flags.replace("--fp8-recipe mxfp8", "")))
    with refused("--fp8-format hybrid", *said):
        plan_ahead(chosen)


def test_the_plan_counts_the_same_flops_and_copies_of_weights() -> None:
    flags = f"{LTD} 16 --ltd-granularity 16 --plan --plan-gpus 1 --plan-gpu h100 --plan-mfu 0.5"
    bf16 = plan_ahead(config(flags))
    fp8 = plan_ahead(config(f"{flags} --fp8-format e4m3 --fp8-recipe tensorwise --first-last-layers-bf16"))
    assert fp8.plan.flops(8) == bf16.plan.flops(8)
    assert fp8.speed is not None and bf16.speed is not None
    assert fp8.speed.flops_per_second == pytest.approx(bf16.speed.flops_per_second * 1979 / 989)
    (before,), (after,) = bf16.memory, fp8.memory
    layer = 12 * 64**2 + 13 * 64
    assert after.parts["weights"] - before.parts["weights"] == 2 * 2 * layer  # two of four layers, in two bytes


def test_published_peaks() -> None:
    assert all(FP8_TFLOPS[gpu] == pytest.approx(2 * PEAK_TFLOPS[gpu], rel=0.02) for gpu in FP8_TFLOPS)
    assert published_peak("NVIDIA H200", "float8") == 1979.0 and published_peak("NVIDIA A100-SXM4", "float8") is None
    with refused("--plan-gpu a100", "float8", "--plan-peak-tflops"):
        PlanConfig(plan=True, plan_gpu="a100", plan_mfu=0.5).peak_flops("float8")


def test_layers_in_fp8() -> None:
    ends = {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 2}
    chosen = PrecisionConfig(bf16=True, fp8_format="e4m3", fp8_recipe="mxfp8", **ends)
    assert chosen.layers_in_fp8(6) == range(3, 6)
    assert chosen.without_fp8() == PrecisionConfig(bf16=True) and not chosen.without_fp8().layers_in_fp8(6)
    assert PrecisionConfig(bf16=True, fp8_format="e4m3").layers_in_fp8(6) == range(1, 7)


def test_it_needs_transformer_engine() -> None:
    with world() as mesh, refused("--fp8-format hybrid", "Transformer Engine", "CUDA"):
        core_config(small_model(), mesh, precision=PrecisionConfig(bf16=True, fp8_format="hybrid"))
