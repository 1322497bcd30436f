"""Training objectives: model outputs to loss sums, which add up over the global batch.

    loss of a step = sum of losses / their number, over the whole global batch

Sum and number are reported separately, and Megatron-Core divides the gradient by the total number of the step. The
gradient is therefore that of the formula, however samples are distributed over microbatches and data-parallel ranks.

Not here: how a microbatch is made (``data``), or the model (``models``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ltd.data.batch import Batch
from megatron.ltd.data.bert_batch import BertBatch


class Objective(Protocol):
    """How a model is called, and how its outputs become a loss. It has no state."""

    num_sums: int
    """Length of what ``loss`` reports."""

    def forward(self, model: torch.nn.Module, batch: Any) -> Any:
        """The outputs of this stage's part of ``model``."""
        ...

    def loss(self, batch: Any, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the losses, with gradient, their number, int, and a report, float [num_sums].

        A report begins with this sum and number, and continues with the other sums that ``measures`` needs. Called on
        the last stage of a pipeline.
        """
        ...

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """The values to log, computed from summed reports, "loss" first."""
        ...

    def token_losses(self, batch: Any, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [B, S], the loss attributed to each, and 1 if it counts, else 0."""
        ...


class CausalLM(Objective):
    """Next-token prediction: the mean loss over the tokens that the loss mask includes."""

    num_sums = 2

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Losses [B, S] on the last stage, hidden states before it."""
        return model(batch.tokens_BS, batch.position_ids_BS, batch.attention_mask(), labels=batch.labels_BS)

    def loss(self, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return masked_loss_sum(batch.loss_mask_BS, outputs)

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """The mean loss a token, and its exponential."""
        loss = mean(sums[0], sums[1])
        return {"loss": loss, "perplexity": perplexity(loss)}

    def token_losses(self, batch: Batch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss at a token's position, which is that of predicting the token after it."""
        assert batch.tokens_BS is not None and batch.loss_mask_BS is not None, "the last stage has tokens"
        return batch.tokens_BS, outputs, batch.loss_mask_BS


class MaskedLM(Objective):
    """Masked language modelling: the mean loss over the hidden tokens, and optionally the order of two sentences.

        loss = sum over samples of (sum of its n hidden tokens' losses + n * its loss of sentence order) / sum of n

    The order of a sample is weighted by its number n of hidden tokens: the whole is one mean over hidden tokens, which
    adds up over microbatches and ranks. If all samples hide the same number, it is BERT's sum of two means.
    """

    num_sums = 6

    def __init__(self, *, sentence_order: bool) -> None:
        self.sentence_order = sentence_order

    def forward(self, model: torch.nn.Module, batch: BertBatch) -> Any:
        """Losses [B, S] and logits of sentence order [B, 2] or None on the last stage, hidden states before it."""
        assert batch.padding_BS is not None, "masked samples say what is padding"
        types = {"tokentype_ids": batch.types_BS} if self.sentence_order else {}
        return model(batch.tokens_BS, ~batch.padding_BS, lm_labels=batch.labels_BS, **types)

    def loss(self, batch: BertBatch, outputs: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """The formula above; the report ends with the parts that ``measures`` lists separately."""
        losses_BS, order_logits_B2 = outputs
        hidden_B = batch.loss_mask_BS.sum(dim=1)
        masked_lm, number = (losses_BS.float() * batch.loss_mask_BS).sum(), hidden_B.sum()
        order = right = masked_lm.new_zeros(())
        if order_logits_B2 is not None:
            order_B = F.cross_entropy(order_logits_B2.float(), batch.is_swapped_B, reduction="none")
            order = (hidden_B * order_B).sum()
            right = (order_logits_B2.argmax(dim=1) == batch.is_swapped_B).sum().float()
        samples = number.new_full((), len(hidden_B))
        report = torch.stack([masked_lm + order, number, masked_lm, order, right, samples]).detach()
        return masked_lm + order, number.int(), report

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """Loss, and perplexity of the hidden tokens; with sentence order both parts and the accuracy of the order."""
        total, number, masked_lm, order, right, samples = sums
        measures = {"loss": mean(total, number), "perplexity": perplexity(mean(masked_lm, number))}
        if self.sentence_order:
            measures["masked_lm_loss"] = mean(masked_lm, number)
            measures["sentence_order_loss"] = mean(order, number)
            measures["sentence_order_accuracy"] = mean(right, samples)
        return measures

    def token_losses(self, batch: BertBatch, outputs: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of predicting a hidden token, attributed to that token."""
        return batch.labels_BS, outputs[0], batch.loss_mask_BS


def masked_loss_sum(loss_mask_BS: Tensor | None, losses_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the losses where the mask is 1, the number of those tokens, and both as one [2] tensor for the log."""
    assert loss_mask_BS is not None, "the last pipeline stage has the loss mask"
    loss_sum = torch.sum(losses_BS.float() * loss_mask_BS)
    num_tokens = loss_mask_BS.sum()
    return loss_sum, num_tokens.int(), torch.stack([loss_sum.detach(), num_tokens])


def mean(total: float, number: float) -> float:
    """``total`` / ``number``; NaN if the number is 0."""
    return total / number if number else math.nan


def perplexity(loss: float) -> float:
    """The exponential of a mean loss, finite."""
    return math.exp(min(loss, 700.0))


def mean_of_sets(measures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The measures of several sets as "name/measure", after the means of their losses and perplexities (geometric)."""
    if not measures:
        return {}
    losses = [of_set["loss"] for of_set in measures.values()]
    found = {"loss": sum(losses) / len(losses)}
    logarithms = [math.log(of_set["perplexity"]) for of_set in measures.values() if "perplexity" in of_set]
    if logarithms:
        found["perplexity"] = math.exp(sum(logarithms) / len(logarithms))
    return found | {f"{name}/{key}": value for name, of_set in measures.items() for key, value in of_set.items()}
