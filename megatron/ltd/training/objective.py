"""What a step makes smaller: from a model's outputs on a microbatch to sums that add up over the whole global batch.

    loss of a step = sum of losses / their number, over the whole global batch

Sum and number are reported apart, and Megatron-Core divides the gradient by the step's total number. So the gradient is
that of the formula however samples fall on microbatches and data-parallel ranks.

Not here: how a microbatch is made (``data``), or the model (``models``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.training.loss import masked_loss_sum


class Objective(Protocol):
    """How a model is asked and judged. Without state."""

    num_sums: int
    """Length of what ``loss`` reports."""

    def forward(self, model: torch.nn.Module, batch: Any) -> Any:
        """The outputs of this stage's part of ``model``."""
        ...

    def loss(self, batch: Any, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the losses, with gradient, their number, int, and a report, float [num_sums].

        A report begins with that sum and number, and holds whatever else ``measures`` is made of, as sums too. Asked on
        the last stage of a pipeline.
        """
        ...

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """What the log says of reports added up: "loss" first."""
        ...

    def token_losses(self, batch: Any, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [B, S], the loss that each is charged with, and 1 where it counts, else 0."""
        ...


class CausalLM(Objective):
    """The next token: mean over the tokens that the loss mask counts."""

    num_sums = 2

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Losses [B, S] on the last stage, hidden states before it."""
        return model(batch.tokens_BS, batch.position_ids_BS, batch.attention_mask, labels=batch.labels_BS)

    def loss(self, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return masked_loss_sum(batch.loss_mask_BS, outputs)

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """The mean loss a token, and its exponential."""
        loss = mean(sums[0], sums[1])
        return {"loss": loss, "perplexity": perplexity(loss)}

    def token_losses(self, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A token is charged with the loss at its position: that of the token after it."""
        assert batch.tokens_BS is not None and batch.loss_mask_BS is not None, "the last stage has tokens"
        return batch.tokens_BS, outputs, batch.loss_mask_BS


def mean(total: float, number: float) -> float:
    """``total`` / ``number``; NaN of nothing."""
    return total / number if number else math.nan


def perplexity(loss: float) -> float:
    """The exponential of a mean loss, finite."""
    return math.exp(min(loss, 700.0))
