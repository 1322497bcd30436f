"""The rules between a layout and a model: against Megatron-Core's own division of layers, and each refusal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megatron.ltd.errors import UserError
from megatron.ltd.models.config import ModelConfig
from megatron.ltd.models.execution_config import RecomputeConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.layout import (
    check_batches,
    check_model,
    check_recompute,
    layers_per_stage,
    layout_text,
    sequence_parts,
    virtual_stages,
)
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from tests.support_errors import refused

STAGES = [
    (24, {}, (24,)),
    (24, {"pipeline_model_parallel_size": 4}, (6, 6, 6, 6)),
    (6, {"pipeline_model_parallel_size": 4, "decoder_first_pipeline_num_layers": 1,
         "decoder_last_pipeline_num_layers": 1}, (1, 2, 2, 1)),
    (7, {"pipeline_model_parallel_size": 3, "decoder_first_pipeline_num_layers": 3}, (3, 2, 2)),
    (7, {"pipeline_model_parallel_size": 3, "decoder_last_pipeline_num_layers": 1}, (3, 3, 1)),
    (5, {"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 2,
         "decoder_last_pipeline_num_layers": 3}, (2, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("num_layers", "flags", "expected"), STAGES)
def test_layers_of_each_stage_match_megatron_core(num_layers: int, flags: dict[str, Any], expected: tuple[int]) -> None:
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    assert layers_per_stage(ParallelConfig(**flags), num_layers) == expected
    core = SimpleNamespace(
        num_layers=num_layers,
        pipeline_model_parallel_layout=None,
        num_layers_in_first_pipeline_stage=flags.get("decoder_first_pipeline_num_layers"),
        num_layers_in_last_pipeline_stage=flags.get("decoder_last_pipeline_num_layers"),
        pipeline_model_parallel_size=flags.get("pipeline_model_parallel_size", 1),
        virtual_pipeline_model_parallel_size=None,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
    )
    assert tuple(get_num_layers_to_build(core, None, rank) for rank in range(len(expected))) == expected


def test_chunks_of_an_interleaved_pipeline() -> None:
    parallel = ParallelConfig(pipeline_model_parallel_size=2, num_layers_per_virtual_pipeline_stage=3)
    assert virtual_stages(parallel, 24) == 4
    assert virtual_stages(ParallelConfig(pipeline_model_parallel_size=2), 24) is None


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({}, 1),
        ({"tensor_model_parallel_size": 4}, 1),
        ({"tensor_model_parallel_size": 4, "sequence_parallel": True}, 4),
        ({"context_parallel_size": 2}, 4),
        ({"context_parallel_size": 2, "tensor_model_parallel_size": 4, "sequence_parallel": True}, 8),
        ({"context_parallel_size": 3, "tensor_model_parallel_size": 4}, 6),
    ],
)
def test_parts_of_the_sequence(flags: dict[str, Any], parts: int) -> None:
    assert sequence_parts(ParallelConfig(**flags)) == parts


PP2: dict[str, Any] = {"pipeline_model_parallel_size": 2}
REFUSALS: list[tuple[dict[str, Any], dict[str, Any], tuple[object, ...]]] = [
    ({"pipeline_model_parallel_size": 3}, {}, ("--num-layers 4", "--pipeline-model-parallel-size 3")),
    ({**PP2, "decoder_first_pipeline_num_layers": 1, "decoder_last_pipeline_num_layers": 2}, {},
     ("--num-layers 4", "--decoder-first-pipeline-num-layers 1", "--decoder-last-pipeline-num-layers 2")),
    ({**PP2, "decoder_first_pipeline_num_layers": 4}, {}, ("--num-layers 4", "--pipeline-model-parallel-size 2")),
    ({**PP2, "num_layers_per_virtual_pipeline_stage": 2}, {}, ("--num-layers-per-virtual-pipeline-stage 2",)),
    ({**PP2, "num_layers_per_virtual_pipeline_stage": 1, "decoder_first_pipeline_num_layers": 1}, {},
     ("--num-layers-per-virtual-pipeline-stage 1", "1, 3 layers")),
    ({"tensor_model_parallel_size": 3}, {}, ("--num-attention-heads 16", "--tensor-model-parallel-size 3")),
    ({"tensor_model_parallel_size": 4}, {"group_query_attention": True, "num_query_groups": 2},
     ("--num-query-groups 2", "--tensor-model-parallel-size 4")),
    ({"tensor_model_parallel_size": 4}, {"ffn_hidden_size": 6}, ("--ffn-hidden-size 6",)),
    ({"context_parallel_size": 2}, {"seq_length": 30}, ("--seq-length 30", 4, "2 x --context-parallel-size 2")),
    ({"tensor_model_parallel_size": 4, "sequence_parallel": True}, {"seq_length": 30},
     ("--seq-length 30", 4, "--tensor-model-parallel-size 4", "--sequence-parallel")),
]  # fmt: skip


@pytest.mark.parametrize(("parallel", "model", "names"), REFUSALS)
def test_a_model_that_does_not_fit_is_refused(
    parallel: dict[str, Any], model: dict[str, Any], names: tuple[object, ...]
) -> None:
    with refused(*names):
        check_model(ParallelConfig(**parallel), ModelConfig(**({"num_layers": 4} | model)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"context_parallel_size": 0}, ("--context-parallel-size 0", 1)),
        ({"decoder_last_pipeline_num_layers": 0, **PP2}, ("--decoder-last-pipeline-num-layers 0",)),
        ({"num_layers_per_virtual_pipeline_stage": 2}, ("--pipeline-model-parallel-size 1",)),
        ({"decoder_first_pipeline_num_layers": 2}, ("--pipeline-model-parallel-size 1",)),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any], message: tuple[object, ...]) -> None:
    with refused(*message):
        ParallelConfig(**flags)


def test_a_layout_that_does_not_divide_the_processes_is_refused() -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=2, pipeline_model_parallel_size=2)
    assert parallel.data_parallel_size(16) == 2
    expected = (
        "12 processes were started, but --tensor-model-parallel-size 2 x --context-parallel-size 2 x "
        "--pipeline-model-parallel-size 2 = 8 does not divide them: start a multiple of 8"
    )
    with pytest.raises(UserError) as refused:
        parallel.data_parallel_size(12)
    assert str(refused.value) == expected


def test_an_interleaved_pipeline_needs_multiples_of_its_stages() -> None:
    interleaved = ParallelConfig(**PP2, num_layers_per_virtual_pipeline_stage=1)
    whole, three_each = BatchSchedule(32, None), BatchSchedule(24, None)
    check_batches(interleaved, whole, 4, 2)
    check_batches(ParallelConfig(**PP2), three_each, 4, 2)
    with refused("--global-batch-size", 24, 3, "--pipeline-model-parallel-size 2"):
        check_batches(interleaved, three_each, 4, 2)
    with refused("--global-batch-size", 24, 3):  # the second batch size of the ramp
        check_batches(interleaved, BatchSchedule(32, BatchRamp(16, 8, 100)), 4, 2)


@pytest.mark.parametrize(
    ("flags", "data_parallel_size", "num_chunks", "text"),
    [
        ({}, 1, 1, ""),
        ({}, 4, 1, "data 4"),
        (PP2, 1, 3, "pipeline 2 interleaved in 3 chunks each"),
        (
            {**PP2, "tensor_model_parallel_size": 2, "sequence_parallel": True, "use_distributed_optimizer": True},
            8,
            1,
            "tensor 2 with sequence parallelism x pipeline 2 x data 8 with distributed optimizer",
        ),
    ],
)
def test_a_layout_in_words(flags: dict[str, Any], data_parallel_size: int, num_chunks: int, text: str) -> None:
    assert layout_text(ParallelConfig(**flags), data_parallel_size, num_chunks) == text


GROUPS: list[tuple[int, int, dict[str, Any], bool]] = [
    (1, 6, {}, True), (3, 6, {}, True), (6, 6, {}, True), (4, 6, {}, False), (7, 6, {}, False), (12, 6, {}, False),
    (3, 12, {"pipeline_model_parallel_size": 2}, True), (4, 12, {"pipeline_model_parallel_size": 2}, False),
    (2, 11, {"pipeline_model_parallel_size": 2, "decoder_first_pipeline_num_layers": 4}, False),
    (2, 8, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 2}, True),
    (4, 8, {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 2}, False),
]  # fmt: skip


@pytest.mark.parametrize(("group", "num_layers", "flags", "fits"), GROUPS)
def test_uniform_groups_of_recomputed_layers(group: int, num_layers: int, flags: dict[str, Any], fits: bool) -> None:
    """Megatron-Core computes whole groups of each stage, or of each chunk."""
    uniform, block = (RecomputeConfig("full", method, group) for method in ("uniform", "block"))
    parallel = ParallelConfig(**flags)
    check_recompute(block, parallel, num_layers)
    if fits:
        check_recompute(uniform, parallel, num_layers)
    else:
        with refused(f"--recompute-num-layers {group}"):
            check_recompute(uniform, parallel, num_layers)
