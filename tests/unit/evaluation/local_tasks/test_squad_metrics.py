"""SQuAD's metrics against values computed by hand, and their import by lm-eval."""

from __future__ import annotations

import importlib

import pytest

from megatron.ltd.evaluation.local_tasks.squad_metrics import compute_exact, compute_f1, stand_in_for_squad_metrics


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


def test_lm_evals_import_finds_the_metrics() -> None:
    pytest.importorskip("transformers")
    stand_in_for_squad_metrics()
    stand_in_for_squad_metrics()
    found = importlib.import_module("transformers.data.metrics.squad_metrics")
    assert found.compute_exact("The cat", "cat") == 1 and found.compute_f1("x y", "y z") == pytest.approx(0.5)
