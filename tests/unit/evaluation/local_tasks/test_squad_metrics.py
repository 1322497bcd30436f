"""SQuAD's metrics against values computed by hand."""

from __future__ import annotations

import pytest

from megatron.ltd.evaluation.local_tasks.squad_metrics import compute_exact, compute_f1


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        ("The Crew!", "crew", 1, 1.0),
        ("the old crew", "an old ship", 0, 0.5),
        ("go go go", "go", 0, 0.5),
        ("cat", "dog", 0, 0.0),
        ("the", "a", 1, 1.0),
        ("the", "cat", 0, 0.0),
    ],
)
def test_metrics_equal_values_by_hand(gold: str, predicted: str, exact: int, f1: float) -> None:
    assert (compute_exact(gold, predicted), compute_f1(gold, predicted)) == (exact, pytest.approx(f1))
