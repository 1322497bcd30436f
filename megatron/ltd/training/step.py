"""One optimizer step, and one evaluation, through Megatron-Core's pipeline schedule.

    for each microbatch:  batch -> route -> model -> loss sum -> gradients        (Megatron-Core's schedule)
    mean over the step's real tokens -> finite? -> clip -> Adam

Random numbers (dropout) are a pure function of (seed, step, rank): every step seeds its own streams, so that a resumed
run draws what the uninterrupted one drew, with nothing random in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import Method, StepPlan
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.training.loss import masked_loss_sum

_SEEDS = 2**31 - 2**16  # seeds stay below this, so that Megatron-Core's offsets by rank keep them in 31 bits


@dataclass(frozen=True)
class StepResult:
    """What a step reports: mean loss a token, gradient norm before clipping, and whether the weights were updated."""

    loss: float
    grad_norm: float
    updated: bool


def seed_step(seed: int, step: int, mesh: Mesh) -> None:
    """Start the random streams of ``step``, or of the initial weights for step -1."""
    place = mesh.data_parallel_rank * parallel_state.get_pipeline_model_parallel_world_size()
    place += parallel_state.get_pipeline_model_parallel_rank()
    mixed = (seed * 0x9E3779B1 + (step + 1) * 0x85EBCA77 + (place if step >= 0 else 0) * 0xC2B2AE3D) % _SEEDS
    torch.manual_seed(mixed)
    model_parallel_cuda_manual_seed(mixed)


class Stepper:
    """The compiled-in half of a step: model, optimizer, schedule and place; what varies comes as arguments."""

    def __init__(
        self,
        model: DistributedDataParallel,
        optimizer: MegatronOptimizer | None,
        method: Method,
        mesh: Mesh,
        *,
        seed: int,
        micro_batch_size: int,
        seq_length: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.method = method
        self.mesh = mesh
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.seq_length = seq_length
        self._forward_backward = get_forward_backward_func()

    def train(self, batches: Iterator[Batch], plan: StepPlan, step: int, num_microbatches: int) -> StepResult:
        """Forward, backward and update for 0-based ``step``; each rank computes ``num_microbatches``.

        A loss that is not finite leaves the weights as they were (``updated`` is False).
        """
        assert self.optimizer is not None
        seed_step(self.seed, step, self.mesh)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self._mean_loss(self._run(batches, plan, num_microbatches, forward_only=False))
        if not math.isfinite(loss):
            return StepResult(loss, math.nan, updated=False)
        updated, grad_norm, _ = self.optimizer.step()
        return StepResult(loss, math.nan if grad_norm is None else float(grad_norm), bool(updated))

    def evaluate(self, batches: Iterator[Batch], num_microbatches: int) -> float:
        """Mean loss a token over ``num_microbatches`` of each rank: every token kept, no dropout."""
        return self._mean_loss(self._run(batches, None, num_microbatches, forward_only=True))

    def _run(
        self, batches: Iterator[Batch], plan: StepPlan | None, num_microbatches: int, *, forward_only: bool
    ) -> list[Tensor]:
        return self._forward_backward(
            forward_step_func=partial(self._forward, plan),
            data_iterator=batches,
            model=[self.model],
            num_microbatches=num_microbatches,
            seq_length=self.seq_length,
            micro_batch_size=self.micro_batch_size,
            forward_only=forward_only,
        )

    def _forward(self, plan: StepPlan | None, batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, Any]:
        batch = next(batches).to(self.mesh.device, non_blocking=True)
        route = None if plan is None else Route(plan, self.method, batch.sample_ids_B)
        with use_route(route):
            losses_BS = model(batch.tokens_BS, batch.position_ids_BS, batch.attention_mask, labels=batch.labels_BS)
        return losses_BS, partial(masked_loss_sum, batch.loss_mask_BS)

    def _mean_loss(self, reported: list[Tensor]) -> float:
        """Mean over the real tokens of all microbatches and ranks; the last pipeline stage tells the others."""
        total = torch.zeros(2, device=self.mesh.device)
        if reported:
            total = torch.stack(reported).sum(dim=0)
            dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            dist.broadcast(
                total,
                src=parallel_state.get_pipeline_model_parallel_last_rank(),
                group=parallel_state.get_pipeline_model_parallel_group(),
            )
        loss_sum, num_tokens = total.tolist()
        return loss_sum / num_tokens if num_tokens else math.nan
