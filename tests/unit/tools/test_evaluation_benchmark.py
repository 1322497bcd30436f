"""The evaluation benchmark: refused flags, and the figures of its page."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support_errors import refused
from tests.unit.tools.tables import table_rows
from tools.benchmark import evaluation


def config(**changes: Any) -> evaluation.EvaluationBenchmarkConfig:
    files = {"vocab_file": "v", "merge_file": "m", "task_data": "d"}
    return evaluation.EvaluationBenchmarkConfig(**files | changes)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"task_data": None}, ["--task-data"]),
        ({"rounds": 0}, ["--rounds 0", 1]),
        ({"clock": "cpu"}, ["--clock cpu", "--threads 1", "--device cpu"]),
    ],
)
def test_bad_flags_are_refused(changes: dict[str, Any], names: list[object]) -> None:
    pytest.importorskip("accelerate")
    with refused(*names):
        config(**changes)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else name)
    with refused("accelerate"):
        config()


def test_the_ratio_is_to_the_fastest_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the median of the ratios within each round (4 / 2, 6 / 3 and 9 / 2), next to medians of seconds."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    seconds = {"a": {"ours": [2.0, 3.0, 2.0], "hf, batch 1": [9.0, 9.0, 9.0], "hf, batch 8": [4.0, 6.0, 9.0]}}
    settings = config(hf_batch_sizes=(1, 8), device="cpu")
    page = evaluation.report(settings, {"a": ("loglikelihood", [0] * 5)}, seconds, {"a": "alike"})
    assert table_rows(page) == [["a", "5", "2.00 s", "9.00 s", "6.00 s", "2.00 x", "alike"]]


def test_how_answers_differ() -> None:
    assert evaluation._difference(["a", "b"], ["a", "c"]) == "1 of 2 texts equal"
    assert evaluation._difference([(-1.0, True)], [(-1.5, True)]) == "log-likelihoods within 5.0e-01"
    assert evaluation._difference([-1.0], [-1.25]) == "log-likelihoods within 2.5e-01"
