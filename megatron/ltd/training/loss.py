"""The loss of one microbatch, as a sum over its real tokens.

    loss of a step = sum of token losses / number of real tokens, over the whole global batch

The sum and the count are returned separately, and Megatron-Core divides the gradient by the total count of the step.
The gradient is therefore that of the formula above, however tokens are distributed over microbatches and data-parallel
ranks, also with unequal loss masks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_loss_sum(loss_mask_BS: Tensor | None, losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses where the mask is 1, the number of those tokens, and both as one [2] tensor for the log."""
    assert loss_mask_BS is not None, "the last pipeline stage has the loss mask"
    loss_sum = torch.sum(losses_BS.float() * loss_mask_BS)
    num_tokens = loss_mask_BS.sum()
    return loss_sum, num_tokens.int(), torch.stack([loss_sum.detach(), num_tokens])


def add_by_token(losses_2V: Tensor, tokens_BS: Tensor, losses_BS: Tensor, loss_mask_BS: Tensor) -> None:
    """Add each token's loss, and 1, to the row of its id in ``losses_2V``, float64 [2, V]: sums, and their number."""
    mask_N = loss_mask_BS.flatten().double()
    amounts_2N = torch.stack([losses_BS.detach().flatten().double() * mask_N, mask_N])
    losses_2V.index_add_(1, tokens_BS.flatten(), amounts_2N)
