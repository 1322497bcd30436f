"""Sizes that the kernels of fp8 multiply, and layers that stay in bf16. No torch.

A product of a layer has three sizes: the tokens that a process holds of a microbatch, and the rows and columns of the
weight, or of the process's part of it. Transformer Engine needs multiples of 16 of each; with ``--fp8-recipe mxfp8`` of
32, a block of values; and with ``blockwise`` of 128, a block, in what sequence parallelism gathers.

    tokens of a process = kept tokens x micro-batch / (context-parallel x sequence-parallel processes)

Kept tokens are not rounded: a number that does not fit is refused, with the multiple that does.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from megatron.ltd.errors import UserError
from megatron.ltd.flags import flag_name
from megatron.ltd.models.config import LayersConfig
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.plan.run_plan import RunPlan

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig


def check_layers(model: LayersConfig, precision: PrecisionConfig, parallel: ParallelConfig) -> None:
    """Raise ``UserError`` if layers of these sizes cannot be computed in fp8. Does nothing without fp8."""
    if precision.fp8_format is None:
        return
    if model.transformer_impl == "local":
        raise UserError(
            f"--fp8-format {precision.fp8_format}: only Transformer Engine's layers have fp8, and --transformer-impl "
            "local has others; drop one of the two"
        )
    block, gathered = _units(precision, parallel)
    tensor, heads = parallel.tensor_model_parallel_size, model.num_attention_heads
    sizes = {
        f"--hidden-size {model.hidden_size}": (model.hidden_size, gathered),
        f"the width of the MLP, {model.mlp_size}": (model.mlp_size // tensor, block),
        f"{heads} heads of size {model.head_size}": (heads * model.head_size // tensor, block),
        f"{heads} queries and {model.query_groups} keys and values of size {model.head_size}": (
            (heads + 2 * model.query_groups) * model.head_size // tensor,
            block,
        ),
    }
    for what, (size, unit) in sizes.items():
        if size % unit:
            share = f"{size} on each of --tensor-model-parallel-size {tensor} processes, " if tensor > 1 else ""
            raise UserError(f"{_asked(precision)}: {what}, is {share}not a multiple of {unit}; change it")
    if not precision.layers_in_fp8(model.num_layers):
        raise UserError("--first-last-layers-bf16: leaves none of the layers in fp8; lower the numbers of its layers")
    most = model.num_layers // parallel.pipeline_model_parallel_size
    for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        number = getattr(precision, name)
        if precision.first_last_layers_bf16 and number > most:
            raise UserError(
                f"--{name.replace('_', '-')} {number}: must be at most {most}, the layers of a pipeline stage; lower it"
            )


def check_tokens(config: RunConfig, plan: RunPlan) -> None:
    """Raise ``UserError`` if a step computes numbers of tokens that fp8 cannot multiply. Does nothing without fp8."""
    if config.precision.fp8_format is None:
        return
    parallel, batch, whole = config.parallel, config.training.micro_batch_size, plan.shape.seq_length
    _, unit = _units(config.precision, parallel)
    shared = parallel.context_parallel_size * (parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1)
    multiple = unit * shared
    plans = {stage.plan.kept_tokens for stage in plan.stages}
    for tokens in sorted({whole}.union(*plans), reverse=True):  # all tokens first, which evaluation computes too
        if tokens * batch % multiple == 0:
            continue
        fits = multiple // math.gcd(multiple, batch)
        remedy = f"{config.model.seq_length_name} must be a multiple of {fits}"
        if tokens < whole:
            names = [
                flag_name(type(flags), field.name)
                for flags in config.methods.values()
                for field in fields(flags)
                if flags.enabled and field.name.endswith("granularity")
            ]
            remedy = " ".join([f"keep multiples of {fits}", *(f"({name} {fits})" for name in names)])
        each = f"{unit} on each of {shared} processes" if shared > 1 else str(unit)
        raise UserError(
            f"{_asked(config.precision)}: {tokens} {'kept ' if tokens < whole else ''}tokens x --micro-batch-size "
            f"{batch} are not a multiple of {each}; {remedy}, or use a --micro-batch-size that is a multiple of "
            f"{multiple // math.gcd(multiple, tokens)}"
        )


def _units(precision: PrecisionConfig, parallel: ParallelConfig) -> tuple[int, int]:
    """Of what sizes are multiples: those of weights, and those of hidden states."""
    block = 32 if precision.fp8_recipe == "mxfp8" else 16
    gathers = parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1
    return block, 128 if gathers and precision.fp8_recipe == "blockwise" else block


def _asked(precision: PrecisionConfig) -> str:
    return f"--fp8-format {precision.fp8_format} with --fp8-recipe {precision.fp8_recipe}"
