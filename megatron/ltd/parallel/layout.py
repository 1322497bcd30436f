"""What a layout can hold: the rules between parallelism and the model. No torch.

    layers       over pipeline stages, equal or with a first and a last stage of their own; chunks where interleaved
    heads        over tensor-parallel processes, whole
    sequence     in equal runs over context-parallel processes (zigzag), and again over tensor-parallel ones with
                 sequence parallelism (``routing.sequence_shard``)
    microbatches multiples of the stages where the pipeline is interleaved

Every refusal is a ``UserError``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from megatron.ltd.errors import UserError
from megatron.ltd.parallel.config import PIPELINE_FLAGS, ParallelConfig

if TYPE_CHECKING:
    from megatron.ltd.models.config import ModelConfig
    from megatron.ltd.models.encoder_config import ViTConfig


def num_runs(context_size: int, tensor_size: int) -> int:
    """Equal runs that the sequence is cut in for this many context ranks, each split over ``tensor_size`` ranks."""
    return tensor_size if context_size == 1 else math.lcm(2 * context_size, context_size * tensor_size)


def sequence_runs(parallel: ParallelConfig) -> int:
    """Equal runs that the sequence is cut in so that every process holds some; 1 where it is not split."""
    tensor_size = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return num_runs(parallel.context_parallel_size, tensor_size)


def virtual_stages(parallel: ParallelConfig, num_layers: int) -> int | None:
    """Chunks of layers that each process holds in an interleaved pipeline; None where it is not interleaved."""
    per_chunk = parallel.num_layers_per_virtual_pipeline_stage
    if per_chunk is None:
        return None
    return layers_per_stage(parallel, num_layers)[0] // per_chunk


def layers_per_stage(parallel: ParallelConfig, num_layers: int) -> tuple[int, ...]:
    """Layers of each pipeline stage. Raises ``UserError`` where the flags do not divide ``num_layers``."""
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
            f"--num-layers {num_layers} cannot be divided over --pipeline-model-parallel-size {stages}{given}: "
            f"{left} layers are left for {sharing} equal stages; give the first and the last stage numbers that "
            "leave a multiple, with --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers"
        )
    middle = left // sharing if sharing else 0
    if left < 0 or (sharing and middle < 1):
        raise UserError(
            f"--num-layers {num_layers} leaves {left} layers for {sharing} of --pipeline-model-parallel-size "
            f"{stages} stages: every stage needs one; use fewer stages or smaller first and last ones"
        )
    sizes = [middle] * stages
    sizes[0], sizes[-1] = first or middle, last or middle
    return tuple(sizes)


def check_model(parallel: ParallelConfig, model: ModelConfig | ViTConfig) -> None:
    """Refuse a model that this layout cannot hold. Raises ``UserError``."""
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
                f"--num-layers-per-virtual-pipeline-stage {per_chunk} needs stages of equal length, and they have "
                f"{', '.join(map(str, stages))} layers: drop it, or the numbers of the first and last stage"
            )
        if stages[0] % per_chunk or stages[0] == per_chunk:
            raise UserError(
                f"--num-layers-per-virtual-pipeline-stage is {per_chunk}: it must divide the {stages[0]} layers of "
                "a stage (--num-layers / --pipeline-model-parallel-size) into two chunks or more"
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
                f"{spelling} {value} is not a multiple of --tensor-model-parallel-size {tensor}: every process "
                "computes an equal share; change one"
            )
    runs = sequence_runs(parallel)
    if model.seq_length % runs:
        splits = [f"2 x --context-parallel-size {parallel.context_parallel_size}"]
        if parallel.sequence_parallel:
            split = f"--tensor-model-parallel-size {tensor} with --sequence-parallel"
            splits = [*splits, split] if parallel.context_parallel_size > 1 else [split]
        raise UserError(
            f"--seq-length {model.seq_length} is not a multiple of {runs}, the runs that {' and '.join(splits)} cut it "
            "in: use one that is"
        )


def check_microbatches(parallel: ParallelConfig, microbatches: int, global_batch: int) -> None:
    """Refuse a batch too small for an interleaved pipeline. Raises ``UserError``."""
    stages = parallel.pipeline_model_parallel_size
    if parallel.num_layers_per_virtual_pipeline_stage is not None and microbatches % stages:
        raise UserError(
            f"a global batch of {global_batch} gives each process {microbatches} microbatches, and an interleaved "
            f"pipeline (--num-layers-per-virtual-pipeline-stage) takes multiples of "
            f"--pipeline-model-parallel-size {stages}: change --global-batch-size or --micro-batch-size"
        )
