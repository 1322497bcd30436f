"""One optimizer step, and one evaluation, through Megatron-Core's pipeline schedule.

    for each microbatch:  batch -> route -> model -> loss sum -> gradients        (Megatron-Core's schedule)
    mean over the step's real tokens -> finite? -> clip -> Adam

Every step seeds its own random streams (``parallel.random``), and receives its microbatches from the caller: a step
depends on the previous one through the weights and the optimizer's state only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron.ltd.data.microbatches import Microbatch
from megatron.ltd.layers.route import Route, use_route
from megatron.ltd.methods.base import Method
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.parallel.random import seed_step
from megatron.ltd.schedules.step_plan import StepPlan
from megatron.ltd.training.objective import Objective


@dataclass(frozen=True)
class StepResult:
    """What a step reports: mean loss a token, gradient norm before clipping, and whether the weights were updated."""

    loss: float
    grad_norm: float
    updated: bool
    loss_scale: float = 1.0
    """The loss scale of the step, with --fp16."""
    num_zeros: int | None = None
    """Zeros in the gradient; None unless they are counted."""
    token_losses_2V: Tensor | None = None
    """Float64, over the global batch: for each token id the sum of its losses, and their number. None unless needed."""


class Stepper:
    """What all steps share: model, optimizer, pipeline schedule and mesh; what varies by step is an argument."""

    def __init__(
        self,
        chunks: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer | None,
        method: Method,
        mesh: Mesh,
        objective: Objective,
        *,
        seed: int,
        micro_batch_size: int,
        seq_length: int,
    ) -> None:
        self.chunks = list(chunks)
        self.optimizer = optimizer
        self.method = method
        self.mesh = mesh
        self.objective = objective
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.seq_length = seq_length
        num_chunks = len(self.chunks) if len(self.chunks) > 1 else None
        self._forward_backward = get_forward_backward_func(mesh.pipeline_parallel_size, num_chunks)

    def train(
        self,
        batches: Iterator[Microbatch],
        plan: StepPlan,
        step: int,
        num_microbatches: int,
        learned_V: Tensor | None = None,
    ) -> StepResult:
        """Forward, backward and update for 0-based ``step``; each rank computes ``num_microbatches``.

        ``learned_V`` is the state of a method that ``observes``; then the step also reports the losses by token id. A
        loss that is not finite leaves the weights as they were (``updated`` is False).
        """
        assert self.optimizer is not None
        seed_step(self.seed, step, self.mesh)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        losses_2V = None
        if learned_V is not None:
            losses_2V = torch.zeros(2, learned_V.shape[0], dtype=torch.float64, device=self.mesh.device)

        def route(batch: Microbatch, microbatch: int) -> Route:
            return Route(plan, self.method, dataclasses.replace(batch, learned_V=learned_V), step, microbatch)

        loss = self._measures(self._run(batches, route, losses_2V, num_microbatches, forward_only=False))["loss"]
        if losses_2V is not None:
            self._sum_over_ranks(losses_2V)
        loss_scale = float(self.optimizer.get_loss_scale())
        if not math.isfinite(loss):
            return StepResult(loss, math.nan, updated=False, loss_scale=loss_scale)
        updated, grad_norm, num_zeros = self.optimizer.step()
        return StepResult(
            loss,
            math.nan if grad_norm is None else float(grad_norm),
            bool(updated),
            loss_scale,
            None if num_zeros is None else int(num_zeros),
            losses_2V,
        )

    def evaluate(self, batches: Iterator[Microbatch], num_microbatches: int) -> dict[str, float]:
        """The objective's measures over ``num_microbatches`` of each rank: every token kept, no dropout."""
        return self._measures(self._run(batches, lambda *_: None, None, num_microbatches, forward_only=True))

    def _run(
        self,
        batches: Iterator[Microbatch],
        route: Callable[[Microbatch, int], Route | None],
        losses_2V: Tensor | None,
        num_microbatches: int,
        *,
        forward_only: bool,
    ) -> list[Tensor]:
        numbered = enumerate(batches)
        # Every chunk of an interleaved pipeline computes every microbatch.
        per_chunk = list(itertools.tee(numbered, len(self.chunks))) if len(self.chunks) > 1 else numbered
        return self._forward_backward(
            forward_step_func=partial(self._forward, route, losses_2V),
            data_iterator=per_chunk,
            model=self.chunks,
            num_microbatches=num_microbatches,
            seq_length=self.seq_length,
            micro_batch_size=self.micro_batch_size,
            forward_only=forward_only,
        )

    def _forward(
        self,
        route: Callable[[Microbatch, int], Route | None],
        losses_2V: Tensor | None,
        numbered: Iterator[tuple[int, Microbatch]],
        model: torch.nn.Module,
    ) -> tuple[Tensor, Any]:
        microbatch, batch = next(numbered)
        batch = batch.to(self.mesh.device, non_blocking=True)
        with use_route(route(batch, microbatch)):
            outputs = self.objective.forward(model, batch)
        return outputs, partial(self._loss, batch, losses_2V)

    def _loss(self, batch: Microbatch, losses_2V: Tensor | None, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The loss for Megatron-Core, on the last stage; for a method that observes, also summed by token id."""
        if losses_2V is not None:
            add_by_token(losses_2V, *self.objective.token_losses(batch, outputs))
        return self.objective.loss(batch, outputs)

    def _sum_over_ranks(self, losses_2V: Tensor) -> None:
        """Sum over data and context parallelism; every rank gets the same bits, those of the last rank."""
        if self.mesh.pipeline_parallel_rank == self.mesh.pipeline_parallel_size - 1:
            dist.all_reduce(losses_2V, group=self.mesh.groups.dp_cp)
        dist.broadcast(losses_2V, src=self.mesh.world_size - 1)  # ranks count pipeline stages last

    def _measures(self, reported: list[Tensor]) -> dict[str, float]:
        """Over all microbatches and ranks; the last pipeline stage has the sums and sends them to the others."""
        total = torch.zeros(self.objective.num_sums, device=self.mesh.device)
        if reported:
            total = torch.stack(reported).sum(dim=0)
            dist.all_reduce(total, group=self.mesh.groups.dp_cp)
        if self.mesh.pipeline_parallel_size > 1:
            last_stage = dist.get_process_group_ranks(self.mesh.groups.pp)[-1]
            dist.broadcast(total, src=last_stage, group=self.mesh.groups.pp)
        return self.objective.measures(total.tolist())


def add_by_token(losses_2V: Tensor, tokens_BS: Tensor, losses_BS: Tensor, loss_mask_BS: Tensor) -> None:
    """Add each token's loss, and 1, to the row of its id in ``losses_2V``, float64 [2, V]: sums, and their number."""
    mask_N = loss_mask_BS.flatten().double()
    amounts_2N = torch.stack([losses_BS.detach().flatten().double() * mask_N, mask_N])
    losses_2V.index_add_(1, tokens_BS.flatten(), amounts_2N)
