"""Planned memory against what torch's allocator handed out, for every kind of layer and recomputation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.ltd.forecast.forecast import plan_ahead
from megatron.ltd.launch import launch
from tests.support import parse, small_sentences
from tests.support_vit import image_arrays
from tools.benchmark.memory import CASES, case_config, peak_bytes, planned_and_measured, small_data

CLOSE = 0.05
"""The relative tolerance; all cases are within half of it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("case", CASES)
def test_a_gpts_memory_is_as_planned(case: str, data: str, tmp_path: Path) -> None:
    parts, measured = planned_and_measured(case_config(CASES[case], data, tmp_path))
    assert sum(parts.values()) == pytest.approx(measured, rel=CLOSE)


def bert(folder: Path) -> list[str]:
    prefix, vocabulary = small_sentences(folder)
    text = f"--data-path {prefix} --split 1,0,0 --tokenizer-type BertWordPieceLowerCase --vocab-file {vocabulary}"
    return ["pretrain_bert_ltd.py", *text.split(), "--seq-length", "256", "--vocab-size", "1024"]


def vit(folder: Path) -> list[str]:
    data = image_arrays(folder / "train.npz", 37)
    shape = "--img-h 31 --img-w 1 --patch-dim 1 --num-channels 1 --num-classes 3"
    return ["finetune_vit_ltd.py", "--train-data-path", data, *shape.split()]


@pytest.mark.parametrize("dropout", ["0", "0.1"])
@pytest.mark.parametrize("workload", [bert, vit])
def test_an_encoders_memory_is_as_planned(workload: Callable[[Path], list[str]], dropout: str, tmp_path: Path) -> None:
    shape = (
        "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --micro-batch-size 4 --lr 1e-3 --train-iters 2 "
        f"--eval-iters 0 --device cpu --attention-dropout {dropout} --hidden-dropout {dropout} --no-progress"
    )
    config = parse([*workload(tmp_path), *shape.split(), "--log-dir", str(tmp_path / "log")])
    measured = peak_bytes(lambda: launch(config))
    assert plan_ahead(config).fullest.total == pytest.approx(measured, rel=CLOSE)


def test_peak_bytes_counts_allocations_while_they_live() -> None:
    import torch

    kept = [torch.zeros(1000)]

    def work() -> None:
        kept.clear()  # memory from before the call does not count
        first = torch.zeros(1_000_000)
        del first
        second = torch.zeros(500_000)
        kept.append(second + 1)

    assert peak_bytes(work) == pytest.approx(4_000_000, abs=64)


def test_peak_bytes_leaves_out_the_copies_of_gloo() -> None:
    """Gloo releases them in one of its threads or in this one, as it happens."""
    import torch
    import torch.distributed as dist

    whole, part = torch.zeros(1_000_000), torch.zeros(1_000_000)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert peak_bytes(lambda: dist.reduce_scatter_single(part, whole)) < 1_000
    finally:
        dist.destroy_process_group()


def test_steps_that_keep_fewer_tokens_need_less(data: str, tmp_path: Path) -> None:
    """A plan's memory is that of its fullest step: the last of a growing schedule, the first of a shrinking one."""
    shape = CASES["dense"]

    def planned(flags: str) -> int:
        return plan_ahead(case_config(f"{shape} {flags}", data, tmp_path)).fullest.total

    ltd = "--random-ltd --ltd-min-kept-tokens 64"
    few = planned(f"{ltd} --ltd-schedule constant")
    assert (
        few
        < planned("")
        == planned(f"{ltd} --ltd-growth-steps 1")
        == planned(f"{ltd} --ltd-schedule shrinking --ltd-growth-steps 1")
    )


IN_FLIGHT = [
    ("--pipeline-model-parallel-size 4 --global-batch-size 32", [4, 3, 2]),
    ("--pipeline-model-parallel-size 4 --global-batch-size 4", [2, 2, 2]),
]
"""Microbatches, of 16 and of 2, that each stage before the last keeps for backward under 1F1B."""


@pytest.mark.parametrize(("flags", "in_flight"), IN_FLIGHT)
def test_earlier_stages_keep_more_microbatches(flags: str, in_flight: list[int], data: str, tmp_path: Path) -> None:
    forecast = plan_ahead(case_config(f"{CASES['dense']} {flags}", data, tmp_path))
    kept = [stage.parts["activations"] for stage in forecast.memory]
    assert [amount * in_flight[2] / kept[2] for amount in kept[:3]] == in_flight
    assert [stage.layers for stage in forecast.memory] == [(1,), (2,), (3,), (4,)]
    assert forecast.fullest is max(forecast.memory, key=lambda stage: stage.total)
