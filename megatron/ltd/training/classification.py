"""Classification of samples: cross entropy, accuracy and F1, from sums that add up over batches and ranks.

    loss      mean over samples of -log softmax(logits)[label]
    accuracy  share of samples whose largest logit is that of their label
    F1        of a class: 2 hits / (samples predicted as the class + samples labelled as the class)
              two classes: the F1 of class 1; more: the mean over the classes that are predicted or labelled

Samples of weight 0, which fill up a batch, are not counted. Three numbers per class are summed, not a confusion matrix:
a thousand classes report 3,000 numbers.

Shapes: B micro-batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.ltd.data.epochs import LabelledBatch
from megatron.ltd.training.objective import Objective, mean


class Classification(Objective):
    """The class of each sample: the mean loss over the samples that count.

    ``call(model, batch)`` returns the logits [B, C] on the last stage of a pipeline, hidden states before it.
    """

    def __init__(self, num_classes: int, call: Callable[[torch.nn.Module, Any], Tensor]) -> None:
        self.num_classes = num_classes
        self.num_sums = 2 + 3 * num_classes
        self._call = call

    def forward(self, model: torch.nn.Module, batch: LabelledBatch) -> Tensor:
        return self._call(model, batch)

    def loss(self, batch: LabelledBatch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The report: loss and number, then for each class its hits, its predictions and its labels."""
        labels_B, weights_B = batch.labels_B, batch.weights_B
        assert labels_B is not None and weights_B is not None, "the last stage has labels"
        losses_B = F.cross_entropy(outputs.float(), labels_B, reduction="none")
        loss, number = torch.sum(losses_B * weights_B), weights_B.sum()
        given_B = outputs.argmax(dim=1)
        by_class = [
            torch.zeros(self.num_classes, device=outputs.device).index_add_(0, classes_B, amounts_B)
            for classes_B, amounts_B in (
                (labels_B, weights_B * (given_B == labels_B)),
                (given_B, weights_B),
                (labels_B, weights_B),
            )
        ]
        return loss, number.int(), torch.cat([torch.stack([loss.detach(), number]), *by_class])

    def measures(self, sums: Sequence[float]) -> dict[str, float]:
        """The mean loss per sample, accuracy and F1, both from 0 to 1; NaN if there are no samples."""
        loss, number, counts = sums[0], sums[1], sums[2:]
        size = self.num_classes
        hits, given, labelled = counts[:size], counts[size : 2 * size], counts[2 * size :]
        f1 = [
            2.0 * hit / (guesses + there) if guesses + there else None
            for hit, guesses, there in zip(hits, given, labelled, strict=True)
        ]
        counted = [f1[1]] if size == 2 else f1
        present = [value for value in counted if value is not None]
        score = mean(sum(present), len(present))
        return {"loss": mean(loss, number), "accuracy": mean(sum(hits), number), "f1": score}

    def token_losses(self, batch: LabelledBatch, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise AssertionError("classes belong to samples: there are no token losses")
