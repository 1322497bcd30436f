"""Megatron-Core's optimizer over our Adam, around Megatron-Core's data-parallel wrapper."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as CoreOptimizerConfig
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import Float16Module, MegatronModule, param_is_not_shared

from megatron.ltd.layers.routed_layer import RoutedTransformerLayer
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.plan.config import OptimizerConfig
from megatron.ltd.training.adam import FusedAdam

# Modules of Megatron-Core that pick an Adam when imported; without Transformer Engine or Apex they fall back to
# torch's.
_OPTIMIZERS: Any = importlib.import_module("megatron.core.optimizer")
_DISTRIBUTED: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")


def use_fused_adam() -> None:
    """If Megatron-Core fell back to torch's Adam, replace it with ours, whose state is Transformer Engine's."""
    if not _OPTIMIZERS.USING_PYTORCH_OPTIMIZER:
        return
    _OPTIMIZERS.Adam, _OPTIMIZERS.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    _DISTRIBUTED.Adam, _DISTRIBUTED.HAVE_APEX_OR_TE, _DISTRIBUTED.USING_TE_OPTIMIZER = FusedAdam, True, True


def wrap_chunks(
    chunks: Sequence[MegatronModule], parallel: ParallelConfig, precision: PrecisionConfig
) -> list[DistributedDataParallel]:
    """The chunks of the model in their training dtype, each in Megatron-Core's DDP.

    Gradients are in fp32, unless ``--grad-reduce-in-bf16`` is given.
    """
    config, interleaved = chunks[0].config, len(chunks) > 1
    bucket_size = parallel.ddp_bucket_size
    if parallel.ddp_num_buckets is not None:
        own = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
        bucket_size = max(own // parallel.ddp_num_buckets, 1)
    wrapped = []
    for number, chunk in enumerate(chunks):
        module: torch.nn.Module = chunk if precision.dtype == "float32" else Float16Module(config, chunk)
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=not precision.grad_reduce_in_bf16,
            overlap_grad_reduce=parallel.overlap_grad_reduce,
            overlap_param_gather=parallel.overlap_param_gather,
            align_param_gather=parallel.overlap_param_gather and interleaved,  # the schedule starts the gathers
            use_distributed_optimizer=parallel.use_distributed_optimizer,
            bucket_size=bucket_size,
            pad_buckets_for_high_nccl_busbw=parallel.ddp_pad_buckets_for_high_nccl_busbw,
        )
        # Chunks after the first are reduced whole, while other chunks compute.
        wrapped.append(DistributedDataParallel(config, ddp_config, module, disable_bucketing=number > 0))
    config.finalize_model_grads_func = finalize_model_grads
    if parallel.overlap_grad_reduce:
        for chunk in wrapped:
            for layer in filter(lambda module: isinstance(module, RoutedTransformerLayer), chunk.modules()):
                layer.mark_gradients_ready = partial(_mark_gradients_ready, chunk)
        config.no_sync_func = [chunk.no_sync for chunk in wrapped] if interleaved else wrapped[0].no_sync
    if parallel.overlap_param_gather and interleaved:
        config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
    return wrapped


def _mark_gradients_ready(chunk: DistributedDataParallel, layer: RoutedTransformerLayer) -> None:
    """Mark the gradients of a skipped layer as ready to be reduced."""
    for parameter in layer.parameters():
        chunk.param_to_bucket_group[parameter].register_grad_ready(parameter)


def build_optimizer(
    chunks: Sequence[DistributedDataParallel],
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    parallel: ParallelConfig,
    *,
    counts_zeros: bool = False,
) -> MegatronOptimizer:
    """Adam over every parameter of the ``chunks``; biases and norms without weight decay.

    With ``counts_zeros`` a step also returns the number of zeros in the gradient.
    """
    use_fused_adam()
    config = CoreOptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        decoupled_lr=optimizer.decoupled_lr,
        decoupled_min_lr=optimizer.decoupled_min_lr,
        log_num_zeros_in_grad=counts_zeros,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        bf16=precision.bf16,
        fp16=precision.fp16,
        params_dtype=getattr(torch, precision.dtype),
        loss_scale=precision.loss_scale,
        initial_loss_scale=precision.initial_loss_scale,
        min_loss_scale=precision.min_loss_scale,
        loss_scale_window=precision.loss_scale_window,
        hysteresis=precision.hysteresis,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    built = get_megatron_optimizer(config, list(chunks))
    for part in built.chained_optimizers:
        if not part.is_stub_optimizer:  # a rank may have no parameter of this kind
            # Otherwise a checkpoint of a run whose first updates were all skipped would have no state to load.
            part.init_state_fn(part.optimizer, config)
    for group in built.param_groups:  # by which Megatron-Core tells groups apart when it loads a state
        group["is_decoupled_lr"] = not group["default_config"]
    chunks[0].config.grad_scale_func = built.scale_loss
    return built


def weights_norm(optimizer: MegatronOptimizer) -> float:
    """The 2-norm of all parameters, each counted once; those in fp32 where the model computes in half precision.

    Every rank calls this, and gets the same number.
    """
    group = optimizer.get_grad_stats_parallel_group()
    own = [
        parameter.detach().float().square().sum()
        for parameters in optimizer.param_groups
        for parameter in parameters["params"]
        if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter)
    ]
    device = optimizer.get_loss_scale().device
    total = torch.stack(own).sum() if own else torch.zeros((), device=device)
    torch.distributed.all_reduce(total, group=group)
    return float(total.sqrt())


def base_learning_rate(optimizer: MegatronOptimizer) -> float:
    """The learning rate of parameters without one of their own."""
    return next(group["lr"] for group in optimizer.param_groups if group["default_config"])


@contextmanager
def whole_weights(chunks: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Within the block every process holds all of the latest weights.

    With ``--overlap-param-gather`` a process gathers what others have updated during its next forward pass, and until
    then has the previous weights.
    """
    overlapping = [chunk for chunk in chunks if chunk.ddp_config.overlap_param_gather]
    for chunk in overlapping:
        chunk.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        for chunk in overlapping:
            chunk.enable_forward_pre_hook()


@contextmanager
def evaluation_mode(chunks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """No dropout, no dropped tokens, no gradients."""
    were_training = [chunk.training for chunk in chunks]
    for chunk in chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for chunk, was_training in zip(chunks, were_training, strict=True):
            chunk.train(was_training)
