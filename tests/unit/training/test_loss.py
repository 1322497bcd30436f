"""The loss of a microbatch: a sum and a count, so that a step's mean is over its real tokens."""

from __future__ import annotations

import torch

from megatron.ltd.training.objective import masked_loss_sum
from megatron.ltd.training.step import add_by_token


def test_sum_count_and_report() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    loss_sum, num_tokens, report = masked_loss_sum(mask, losses)
    assert loss_sum.item() == 21.0
    assert num_tokens.item() == 3 and num_tokens.dtype == torch.int32
    assert report.tolist() == [21.0, 3.0] and not report.requires_grad
    loss_sum.backward()
    assert torch.equal(losses.grad, mask)


def test_half_precision_losses_are_summed_in_fp32() -> None:
    losses = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    loss_sum, _, report = masked_loss_sum(torch.ones(1, 4096), losses)
    assert loss_sum.dtype == report.dtype == torch.float32
    assert loss_sum.item() == 4096.0  # a sum in bfloat16 stops growing at 256


def test_an_empty_mask_is_not_an_error() -> None:
    loss_sum, num_tokens, report = masked_loss_sum(torch.zeros(2, 3), torch.ones(2, 3))
    assert loss_sum.item() == 0.0 and num_tokens.item() == 0 and report.tolist() == [0.0, 0.0]


def test_losses_are_added_up_by_token() -> None:
    """Token id 3 is at two positions, one of them masked; losses are added to the earlier sums of id 1."""
    losses_2V = torch.zeros(2, 5, dtype=torch.float64)
    losses_2V[:, 1] = torch.tensor([0.5, 2.0])
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], requires_grad=True)
    add_by_token(losses_2V, torch.tensor([[3, 1, 0], [3, 4, 4]]), losses, torch.tensor([[1.0, 1, 1], [0, 1, 1]]))
    assert losses_2V.tolist() == [[4.0, 2.5, 0.0, 1.0, 48.0], [1.0, 3.0, 0.0, 1.0, 2.0]]
    assert not losses_2V.requires_grad
