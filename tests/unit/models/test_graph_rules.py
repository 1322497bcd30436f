"""What ``--cuda-graph-impl`` refuses: flags, and plans whose stages are too short."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.models.fusions import check_graphs_device
from megatron.ltd.parallel.config import ParallelConfig
from tests.support import parse, small_model
from tests.support_errors import refused

RUN = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --micro-batch-size 2 --train-iters 200 "
    "--global-batch-size 4 --lr 1e-3 --data-path x --tokenizer-type ByteTokenizer"
).split()
LTD = "--random-ltd --ltd-min-kept-tokens 8".split()
GRAPHS = "--cuda-graph-impl local".split()

REFUSED = {
    "cpu": "--device cpu",
    "recompute": "--recompute-granularity selective",
    "fp8": "--fp8-format hybrid",
    "fused gradients": "--gradient-accumulation-fusion",
    "Triton": "--ltd-kernels triton",
    "pipeline": "--pipeline-model-parallel-size 2",
    "context": "--context-parallel-size 2",
    "dropped layers": "--layer-drop",
}


@pytest.mark.parametrize("flag", REFUSED.values(), ids=REFUSED.keys())
def test_flags_that_do_not_fit_graphs(flag: str) -> None:
    more = {"--fp8-format hybrid": ["--bf16"], "--layer-drop": ["--layer-drop-theta", "0.5"]}.get(flag, [])
    parse([*RUN, *flag.split(), *more])
    with refused(flag, "--cuda-graph-impl local"):
        parse([*RUN, *GRAPHS, *flag.split(), *more])


def test_other_spellings() -> None:
    assert parse([*RUN, "--enable-cuda-graph"]).model.cuda_graph_impl == "local"
    assert parse(RUN).model.cuda_graph_impl == "none"
    with refused("--cuda-graph-impl transformer_engine", "--cuda-graph-impl local"):
        parse([*RUN, "--cuda-graph-impl", "transformer_engine"])
    with refused("--cuda-graph-warmup-steps 5", "--cuda-graph-impl local"):
        parse([*RUN, "--cuda-graph-warmup-steps", "5"])
    with refused("--cuda-graph-warmup-steps 0"):
        parse([*RUN, *GRAPHS, "--cuda-graph-warmup-steps", "0"])
    with refused("--external-cuda-graph", "--cuda-graph-impl local"):
        parse([*RUN, "--external-cuda-graph"])


@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        # Three stages below S, of 20 steps and 40 microbatches: exactly as many as 4 passes of a capture need.
        ("--ltd-growth-steps 60 --ltd-granularity 8", None),
        ("--ltd-growth-steps 57 --ltd-granularity 8", [19, 38, 40]),
        ("--ltd-growth-steps 57 --ltd-granularity 8 --cuda-graph-warmup-steps 2", None),
        ("--ltd-growth-steps 57 --ltd-granularity 8 --global-batch-size 8", None),
        ("--ltd-growth-steps 24 --ltd-granularity 1", [1, 2, 40]),  # a stage a step, and a long dense one after it
        ("--ltd-schedule constant", None),
    ],
)
def test_stages_must_be_long_enough(flags: str, refusal: list[int] | None) -> None:
    command = [*RUN, *LTD, *flags.split()]
    config = parse([*command, *GRAPHS])
    if refusal is None:
        plan_ahead(config)
    else:
        with refused("--cuda-graph-impl local", *refusal):
            plan_ahead(config)


def test_a_dense_run_has_one_stage() -> None:
    """Also when its batch grows."""
    plan_ahead(parse([*RUN, *GRAPHS, "--train-iters", "1"]))
    ramp = "--rampup-batch-size 4 4 40 --global-batch-size 12 --train-samples 60".split()
    without_length = [*RUN[:10], *RUN[12:]]
    plan_ahead(parse([*without_length, *GRAPHS, *ramp]))


def test_more_processes_compute_fewer_microbatches_each() -> None:
    flags = "--ltd-growth-steps 60 --ltd-granularity 8 --plan --plan-gpus".split()
    plan_ahead(parse([*RUN, *LTD, *GRAPHS, *flags, "1"]))
    with refused("--cuda-graph-impl local", 20, 40):
        plan_ahead(parse([*RUN, *LTD, *GRAPHS, *flags, "2"]))


def test_devices_and_allocators(monkeypatch: pytest.MonkeyPatch) -> None:
    graphed: Any = small_model(cuda_graph_impl="local")
    cuda, two = torch.device("cuda", 0), ParallelConfig(tensor_model_parallel_size=2)
    with refused("--cuda-graph-impl local", "cpu"):
        check_graphs_device(graphed, ParallelConfig(), torch.device("cpu"))
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    check_graphs_device(graphed, ParallelConfig(), cuda)
    check_graphs_device(small_model(), two, cuda)
    with refused("--cuda-graph-impl local", "--tensor-model-parallel-size 2", "NCCL_GRAPH_REGISTER=0"):
        check_graphs_device(graphed, two, cuda)
    monkeypatch.setenv("NCCL_GRAPH_REGISTER", "0")
    check_graphs_device(graphed, two, cuda)
