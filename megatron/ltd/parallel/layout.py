"""Rules between parallelism, the model and the batch, and layouts as text. No torch.

    layers       over pipeline stages, equal or with other first and last stages; in chunks if interleaved
    heads        whole, over tensor-parallel processes
    sequence     in equal parts over context-parallel processes (zigzag), and with sequence parallelism also over
                 tensor-parallel processes (``routing.sequence_shard``)
    microbatches a multiple of the stages if the pipeline is interleaved

All checks raise ``UserError``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from megatron.ltd.errors import UserError
from megatron.ltd.parallel.config import PIPELINE_FLAGS, ParallelConfig
from megatron.ltd.schedules.batch_size import BatchSchedule

if TYPE_CHECKING:
    from megatron.ltd.models.config import ModelConfig
    from megatron.ltd.models.encoder_config import ViTConfig
    from megatron.ltd.models.execution_config import RecomputeConfig


def num_parts(context_size: int, tensor_size: int) -> int:
    """Equal parts into which the sequence is split over context ranks, each over ``tensor_size`` ranks."""
    return tensor_size if context_size == 1 else math.lcm(2 * context_size, context_size * tensor_size)


def sequence_parts(parallel: ParallelConfig) -> int:
    """Equal parts into which the sequence is split over processes; 1 if it is not split."""
    tensor_size = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return num_parts(parallel.context_parallel_size, tensor_size)


def virtual_stages(parallel: ParallelConfig, num_layers: int) -> int | None:
    """Chunks of layers on each process of an interleaved pipeline; None if it is not interleaved."""
    per_chunk = parallel.num_layers_per_virtual_pipeline_stage
    if per_chunk is None:
        return None
    return layers_per_stage(parallel, num_layers)[0] // per_chunk


def layers_per_stage(parallel: ParallelConfig, num_layers: int) -> tuple[int, ...]:
    """Layers of each pipeline stage. Raises ``UserError`` if the flags do not divide ``num_layers``."""
    stages = parallel.pipeline_model_parallel_size
    first, last = parallel.decoder_first_pipeline_num_layers, parallel.decoder_last_pipeline_num_layers
    left = num_layers - (first or 0) - (last or 0)
    sharing = stages - (first is not None) - (last is not None)
    if left % sharing if sharing else left:
        given = "".join(
            f" and --{name.replace('_', '-')} {getattr(parallel, name)}"
            for name in PIPELINE_FLAGS[1:]
            if getattr(parallel, name) is not None
        )
        raise UserError(
            f"--num-layers {num_layers}: cannot be divided over --pipeline-model-parallel-size {stages}{given}, which "
            f"leaves {left} layers for {sharing} equal stages; set the layers of the first and the last stage with "
            "--decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers, so that the rest divides"
        )
    middle = left // sharing if sharing else 0
    if left < 0 or (sharing and middle < 1):
        raise UserError(
            f"--num-layers {num_layers}: leaves {left} layers for {sharing} of --pipeline-model-parallel-size "
            f"{stages} stages, and every stage needs one; use fewer stages, or smaller first and last ones"
        )
    sizes = [middle] * stages
    sizes[0], sizes[-1] = first or middle, last or middle
    return tuple(sizes)


def check_model(parallel: ParallelConfig, model: ModelConfig | ViTConfig) -> None:
    """Refuse a model that does not fit this layout. Raises ``UserError``."""
    for name, why in model.unfit_parallelism.items():
        value = getattr(parallel, name)
        if value != getattr(ParallelConfig, name):  # its default
            given = "" if value is True else f" {value}"
            raise UserError(f"--{name.replace('_', '-')}{given}: {why}")
    stages = layers_per_stage(parallel, model.num_layers)
    per_chunk = parallel.num_layers_per_virtual_pipeline_stage
    if per_chunk is not None:
        if len(set(stages)) > 1:
            raise UserError(
                f"--num-layers-per-virtual-pipeline-stage {per_chunk}: needs stages of equal length, and they have "
                f"{', '.join(map(str, stages))} layers; remove it, or the layers of the first and last stage"
            )
        if stages[0] % per_chunk or stages[0] == per_chunk:
            raise UserError(
                f"--num-layers-per-virtual-pipeline-stage {per_chunk}: must divide the {stages[0]} layers of a stage "
                "(--num-layers / --pipeline-model-parallel-size) into at least two chunks"
            )
    tensor = parallel.tensor_model_parallel_size
    sizes = {
        "--num-attention-heads": model.num_attention_heads,
        "--num-query-groups": model.query_groups,
        "--ffn-hidden-size": model.mlp_size,
    }
    for spelling, value in sizes.items():
        if value % tensor:
            raise UserError(
                f"{spelling} {value}: must be a multiple of --tensor-model-parallel-size {tensor}, because every "
                "process computes an equal share; change one of them"
            )
    parts = sequence_parts(parallel)
    if model.seq_length % parts:
        splits = [f"2 x --context-parallel-size {parallel.context_parallel_size}"]
        if parallel.sequence_parallel:
            split = f"--tensor-model-parallel-size {tensor} with --sequence-parallel"
            splits = [*splits, split] if parallel.context_parallel_size > 1 else [split]
        raise UserError(
            f"--seq-length {model.seq_length}: must be a multiple of {parts}, the number of parts into which "
            f"{' and '.join(splits)} split it; change it"
        )


def check_recompute(recompute: RecomputeConfig, parallel: ParallelConfig, num_layers: int) -> None:
    """Refuse groups of layers that Megatron-Core cannot recompute. Raises ``UserError``.

    It does not shorten the last group of a stage, or of a chunk of an interleaved pipeline.
    """
    number = recompute.recompute_num_layers
    if number is None or recompute.recompute_method != "uniform":
        return
    chunks = virtual_stages(parallel, num_layers) or 1
    for layers in sorted({layers // chunks for layers in layers_per_stage(parallel, num_layers)}):
        if layers % number:
            place = "a chunk of a pipeline stage" if chunks > 1 else "a pipeline stage"
            raise UserError(
                f"--recompute-num-layers {number}: with --recompute-method uniform it must divide the {layers} layers "
                f"of {place}; use one of {', '.join(str(size) for size in range(1, layers + 1) if layers % size == 0)}"
            )


def check_batches(
    parallel: ParallelConfig, batch: BatchSchedule, micro_batch_size: int, data_parallel_size: int
) -> None:
    """Refuse a schedule with a batch that this layout cannot split into microbatches. Raises ``UserError``."""
    batch.check_divisible(micro_batch_size, data_parallel_size)
    stages = parallel.pipeline_model_parallel_size
    for batch_samples in batch.sizes:
        microbatches = batch_samples // (micro_batch_size * data_parallel_size)
        if parallel.num_layers_per_virtual_pipeline_stage is not None and microbatches % stages:
            raise UserError(
                f"--global-batch-size: a batch of {batch_samples} samples gives each process {microbatches} "
                "microbatches, and an interleaved pipeline (--num-layers-per-virtual-pipeline-stage) needs a multiple "
                f"of --pipeline-model-parallel-size {stages}; change --global-batch-size or --micro-batch-size"
            )


def layout_text(parallel: ParallelConfig, data_parallel_size: int, num_chunks: int) -> str:
    """How processes divide the work, such as "tensor 2 with sequence parallelism x pipeline 2 x data 2".

    ``num_chunks``: chunks of layers on each process, more than 1 in an interleaved pipeline. Empty for one process.
    """
    sequence_parallel = " with sequence parallelism" if parallel.sequence_parallel else ""
    interleaved = f" interleaved in {num_chunks} chunks each" if num_chunks > 1 else ""
    sharded = " with distributed optimizer" if parallel.use_distributed_optimizer else ""
    sizes = (
        (parallel.tensor_model_parallel_size, "tensor", sequence_parallel),
        (parallel.context_parallel_size, "context", ""),
        (parallel.pipeline_model_parallel_size, "pipeline", interleaved),
        (data_parallel_size, "data", sharded),
    )
    return " x ".join(f"{name} {size}{how}" for size, name, how in sizes if size > 1)
