"""Megatron-Core's optimizer over our Adam, around Megatron-Core's data-parallel wrapper."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as CoreOptimizerConfig
from megatron.core.transformer.module import Float16Module

from megatron.ltd.models.config import PrecisionConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.training.adam import FusedAdam
from megatron.ltd.training.config import OptimizerConfig

# Modules of Megatron-Core that pick an Adam when imported; without Transformer Engine or Apex they fall back to
# torch's.
_OPTIMIZERS: Any = importlib.import_module("megatron.core.optimizer")
_DISTRIBUTED: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")


def use_fused_adam() -> None:
    """Where Megatron-Core fell back to torch's Adam, give it ours, with Transformer Engine's state."""
    if not _OPTIMIZERS.USING_PYTORCH_OPTIMIZER:
        return
    _OPTIMIZERS.Adam, _OPTIMIZERS.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    _DISTRIBUTED.Adam, _DISTRIBUTED.HAVE_APEX_OR_TE, _DISTRIBUTED.USING_TE_OPTIMIZER = FusedAdam, True, True


def wrap_model(model: GPTModel, parallel: ParallelConfig, precision: PrecisionConfig) -> DistributedDataParallel:
    """The model in its training type, inside Megatron-Core's DDP, its gradients kept and summed in fp32."""
    config = model.config
    module: torch.nn.Module = model if precision.dtype == "float32" else Float16Module(config, model)
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.use_distributed_optimizer,
    )
    wrapped = DistributedDataParallel(config, ddp_config, module)
    config.finalize_model_grads_func = finalize_model_grads
    if parallel.overlap_grad_reduce:
        config.no_sync_func = wrapped.no_sync
    if parallel.overlap_param_gather:
        config.param_sync_func = wrapped.start_param_sync
    return wrapped


def build_optimizer(
    model: DistributedDataParallel, optimizer: OptimizerConfig, precision: PrecisionConfig, parallel: ParallelConfig
) -> MegatronOptimizer:
    """Adam over every parameter of ``model``; biases and norms without weight decay."""
    use_fused_adam()
    config = CoreOptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
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
    built = get_megatron_optimizer(config, [model])
    for part in built.chained_optimizers:
        if not part.is_stub_optimizer:  # a rank may own no parameter of a kind
            # Without state from the start, a checkpoint of a run whose first updates were all skipped would not load.
            part.init_state_fn(part.optimizer, config)
    model.module.config.grad_scale_func = built.scale_loss
    return built


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout, no dropped tokens, no gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
