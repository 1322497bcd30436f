"""A training step: random numbers by seed and step, the mean over tokens, non-finite losses, and evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from megatron.ltd.data.batch import Batch
from megatron.ltd.models.execution_config import PrecisionConfig
from megatron.ltd.parallel.config import ParallelConfig
from megatron.ltd.parallel.mesh import Mesh
from megatron.ltd.training.optimizer import wrap_chunks
from tests.support import (
    build_core_model,
    build_stepper,
    dense,
    random_batches,
    random_ltd,
    relative_error,
    small_model,
    step_gradients,
)

DROPOUT = small_model(attention_dropout=0.2, hidden_dropout=0.2)
PLAIN = small_model()


def loss_of(mesh: Mesh, step: int, seed: int = 7) -> float:
    """Loss of one step from the same initial weights, with dropout."""
    stepper = build_stepper(DROPOUT, mesh, seed=seed)
    return stepper.train(iter(random_batches(2, 2, 16)), dense(DROPOUT).plan(step), step, 2).loss


@pytest.mark.parametrize("padded", [False, True])
def test_number_and_padding_of_buckets(mesh: Mesh, padded: bool) -> None:
    """Buckets of the size that divides the parameters into as many; padding is to multiples of 65,536 numbers."""
    chunk = build_core_model(PLAIN, mesh)
    parallel = ParallelConfig(
        device="cpu", use_distributed_optimizer=True, overlap_grad_reduce=True, ddp_num_buckets=3,
        ddp_pad_buckets_for_high_nccl_busbw=padded,
    )  # fmt: skip
    size = sum(parameter.numel() for parameter in chunk.parameters()) // 3
    (wrapped,) = wrap_chunks([chunk], parallel, PrecisionConfig())
    (buffer,) = wrapped.buffers
    assert wrapped.bucket_size == size and 2 <= len(buffer.buckets) <= 3
    assert {bucket.grad_data.numel() % 65_536 == 0 for bucket in buffer.buckets} == {padded}


def test_dropout_is_a_function_of_seed_and_step(mesh: Mesh) -> None:
    first = loss_of(mesh, 3)
    torch.rand(5)  # earlier draws must not matter
    assert loss_of(mesh, 3) == first
    assert len({first, loss_of(mesh, 4), loss_of(mesh, 5), loss_of(mesh, 3, seed=8)}) == 4


def test_microbatches_of_a_step_have_different_dropout(mesh: Mesh) -> None:
    """With dropout, the mean loss over a batch and its repetition differs from the loss of the first alone."""
    (batch,) = random_batches(1, 2, 16)
    once = build_stepper(DROPOUT, mesh).train(iter([batch]), dense(DROPOUT).plan(0), 0, 1).loss
    twice = build_stepper(DROPOUT, mesh).train(iter([batch, batch]), dense(DROPOUT).plan(0), 0, 2).loss
    assert twice != once
    assert build_stepper(PLAIN, mesh).train(iter([batch] * 2), dense(PLAIN).plan(0), 0, 2).loss == pytest.approx(
        build_stepper(PLAIN, mesh).train(iter([batch]), dense(PLAIN).plan(0), 0, 1).loss, rel=1e-6
    )


def test_evaluation_draws_nothing_and_changes_nothing(mesh: Mesh) -> None:
    from megatron.ltd.training.optimizer import evaluation_mode

    stepper = build_stepper(DROPOUT, mesh, random_ltd(DROPOUT, 4))
    batches = random_batches(3, 2, 16)
    before = {name: parameter.detach().clone() for name, parameter in stepper.chunks[0].named_parameters()}
    with evaluation_mode(stepper.chunks):
        losses = [stepper.evaluate(iter(batches), 3) for _ in range(2)]
    assert losses[0] == losses[1]
    assert stepper.chunks[0].training
    assert all(torch.equal(parameter, before[name]) for name, parameter in stepper.chunks[0].named_parameters())


def mask_of(batches: Sequence[Batch], counts: Sequence[int]) -> list[Batch]:
    """The same batches with loss masks under which the first ``count`` tokens of each count."""
    masked = []
    for batch, count in zip(batches, counts, strict=True):
        mask = torch.zeros_like(batch.loss_mask_BS).flatten()
        mask[:count] = 1.0
        masked.append(dataclasses.replace(batch, loss_mask_BS=mask.view(batch.loss_mask_BS.shape)))
    return masked


def test_unequal_loss_masks_give_the_token_mean(mesh: Mesh) -> None:
    """With 1, 32 and 0 counted tokens, each microbatch's loss and gradients are weighted by its number of tokens."""
    batches, counts = random_batches(3, 2, 16), (1, 32, 0)
    plan = dense(PLAIN).plan(0)
    together = build_stepper(PLAIN, mesh)
    result = together.train(iter(mask_of(batches, counts)), plan, 0, 3)

    alone: list[tuple[Any, Any]] = []
    for batch, count in zip(batches[:2], counts[:2], strict=True):
        stepper = build_stepper(PLAIN, mesh)
        alone.append((stepper.train(iter(mask_of([batch], [count])), plan, 0, 1), step_gradients(stepper)))
    (few, few_gradients), (many, many_gradients) = alone
    assert result.loss == pytest.approx((few.loss + 32 * many.loss) / 33, rel=1e-6)
    for name, found in step_gradients(together).items():
        assert relative_error(found, (few_gradients[name] + 32 * many_gradients[name]) / 33) < 1e-5, name


def test_a_non_finite_loss_leaves_the_weights_unchanged(mesh: Mesh) -> None:
    stepper = build_stepper(PLAIN, mesh)
    batches = random_batches(2, 2, 16)
    poisoned = dataclasses.replace(batches[1], loss_mask_BS=batches[1].loss_mask_BS * math.inf)
    before = {name: parameter.detach().clone() for name, parameter in stepper.chunks[0].named_parameters()}
    result = stepper.train(iter([batches[0], poisoned]), dense(PLAIN).plan(0), 0, 2)
    assert not math.isfinite(result.loss) and not result.updated
    assert all(torch.equal(parameter, before[name]) for name, parameter in stepper.chunks[0].named_parameters())
    assert stepper.train(iter(batches), dense(PLAIN).plan(1), 1, 2).updated
    assert not torch.equal(
        stepper.chunks[0].module.embedding.word_embeddings.weight, before["module.embedding.word_embeddings.weight"]
    )


def test_gradient_norm_is_that_of_all_gradients_together(mesh: Mesh) -> None:
    stepper = build_stepper(PLAIN, mesh)
    result = stepper.train(iter(random_batches(2, 2, 16)), dense(PLAIN).plan(0), 0, 2)
    norm = torch.cat([gradient.flatten().double() for gradient in step_gradients(stepper).values()]).norm()
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-6)
