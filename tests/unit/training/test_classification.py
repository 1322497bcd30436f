"""The classification objective against scikit-learn's metrics and torch's own mean cross entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from megatron.ltd.data.epochs import LabelledBatch
from megatron.ltd.training.classification import Classification


def objective(num_classes: int) -> Classification:
    return Classification(num_classes, lambda model, batch: model(batch.labels_B))


def batch_of(labels_B: Tensor, weights_B: Tensor) -> LabelledBatch:
    return LabelledBatch(sample_ids_B=torch.arange(len(labels_B)), labels_B=labels_B, weights_B=weights_B)


def draw(num_classes: int, seed: int, num_labelled: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels of 24 samples, of the first ``num_labelled`` classes only; one in four has weight 0."""
    generator = torch.Generator().manual_seed(seed)
    logits_BC = torch.randn(24, num_classes, generator=generator)
    labels_B = torch.randint(0, num_labelled or num_classes, (24,), generator=generator)
    return logits_BC, labels_B, (torch.rand(24, generator=generator) < 0.75).float()


@pytest.mark.parametrize(("num_classes", "num_labelled"), [(2, 2), (3, 3), (10, 10), (40, 5)])
def test_measures_equal_scikit_learns(num_classes: int, num_labelled: int) -> None:
    """Sums are added over three microbatches; of 40 classes only 5 have labels, but others are predicted too."""
    judge = objective(num_classes)
    logits_BC, labels_B, weights_B = draw(num_classes, 1, num_labelled)
    parts = [
        judge.loss(batch_of(labels, weights), logits)
        for logits, labels, weights in zip(
            logits_BC.split([5, 9, 10]), labels_B.split([5, 9, 10]), weights_B.split([5, 9, 10]), strict=True
        )
    ]
    sums = torch.stack([report for _, _, report in parts]).sum(dim=0)
    assert len(sums) == judge.num_sums
    measures = judge.measures(sums.tolist())

    counted = weights_B == 1
    true, given = labels_B[counted].numpy(), logits_BC.argmax(dim=1)[counted].numpy()
    assert measures["loss"] == pytest.approx(F.cross_entropy(logits_BC[counted], labels_B[counted]).item(), rel=1e-6)
    assert measures["accuracy"] == pytest.approx(accuracy_score(true, given))
    average = "binary" if num_classes == 2 else "macro"
    assert measures["f1"] == pytest.approx(f1_score(true, given, average=average))
    assert next(iter(measures)) == "loss"


def test_gradient_is_that_of_the_mean_over_counted_samples() -> None:
    judge = objective(5)
    logits_BC, labels_B, weights_B = draw(5, 2)
    ours, plain = logits_BC.clone().requires_grad_(), logits_BC.clone().requires_grad_()
    loss, number, report = judge.loss(batch_of(labels_B, weights_B), ours)
    assert report[:2].tolist() == [loss.item(), number.item()]
    (loss / number).backward()
    F.cross_entropy(plain[weights_B == 1], labels_B[weights_B == 1]).backward()
    assert number.dtype == torch.int32 and number == weights_B.sum()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_metrics_of_no_samples_are_nan() -> None:
    judge = objective(3)
    assert all(math.isnan(value) for value in judge.measures([0.0] * judge.num_sums).values())


def test_forward_passes_what_the_workload_asks_for() -> None:
    found = objective(2).forward(torch.nn.Identity(), batch_of(torch.tensor([1, 0]), torch.ones(2)))
    assert found.tolist() == [1, 0]
