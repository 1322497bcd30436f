"""Result files and flags of the comparison of tasks that are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.reports.task_results import Score
from megatron.ltd.reports.task_table import CompareConfig
from tests.support_errors import refused
from tests.support_task_results import Write, comparison, task


def test_bad_flags_are_refused(two: list[Path]) -> None:
    with refused("--results"):
        CompareConfig()
    for names, what in (
        ({"names": ("a",)}, ["--names", "--results"]),
        ({"names": ("a", "a")}, ["--names", "a"]),
        ({"metrics": ("piqa",)}, ["--metrics piqa"]),
        ({"metrics": ("piqa=f1",)}, ["--metrics piqa=f1", "acc", "acc_norm"]),
        ({"metrics": ("copa=acc",)}, ["--metrics copa", "boolq", "piqa", "wikitext"]),
    ):
        with refused(*what):
            comparison(*two, **names)
    with refused("--names", "dense"):
        comparison(two[0], two[0])


def test_results_without_a_common_metric_are_refused(write_results: Write) -> None:
    with refused("--results", "piqa", "--tasks"):
        comparison(write_results("a", piqa=task(acc=(0.7, 0.1))), write_results("b", piqa=task(f1=(0.7, 0.1))))


REFUSED_FILES = {
    "incomplete": ('{"results": {"piqa": {"acc', ["line 1"]),
    "something else": ('{"kind": "run", "loss": 1}', ["kind", "loss"]),
    "a list": ("[1]", ["list"]),
    "samples": ('{"results": [1]}', []),
    "no score": ('{"results": {"piqa": {"alias": "piqa", "acc,none": "N/A"}}}', ["score"]),
}


@pytest.mark.parametrize(("content", "names"), REFUSED_FILES.values(), ids=REFUSED_FILES.keys())
def test_bad_files_are_refused(content: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "results_1.json").write_text(content)
    for path in (tmp_path, tmp_path / "results_1.json"):
        with refused(f"--results {path}", tmp_path / "results_1.json" if "score" in names else path, *names):
            comparison(path)


WHOLE: dict[str, Any] = {
    "results": {"piqa": {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": 0.1}},
    "n-samples": {"piqa": {"effective": 10, "original": 20}}, "higher_is_better": {"piqa": {"acc": True}},
    "versions": {"piqa": 1.0}, "n-shot": {"piqa": 0}, "task_hashes": {"piqa": "x"}, "config": {"model": "a"},
    "group_subtasks": {}, "groups": {}, "lm_eval_version": "0.4", "model_name": "m",
}  # fmt: skip
NO_OBJECT: tuple[Any, ...] = (1, -1.5, True, "x", "\ud800", [], [[1]], 10**400)
PLACES: tuple[tuple[str, ...], ...] = (
    *((name,) for name in WHOLE if isinstance(WHOLE[name], dict)), ("results", "piqa"), ("n-samples", "piqa"),
    ("higher_is_better", "piqa"),
)  # fmt: skip


def replaced(place: tuple[str, ...], value: Any) -> str:
    """The text of a result file with another value in one place."""
    content = copy.deepcopy(WHOLE)
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize("place", PLACES, ids="/".join)
def test_what_must_be_an_object_and_is_not_is_refused(place: tuple[str, ...], tmp_path: Path) -> None:
    for value in NO_OBJECT:
        (tmp_path / "results_1.json").write_text(replaced(place, value))
        with refused(f"--results {tmp_path}", place[0]):
            comparison(tmp_path)


@pytest.mark.parametrize("place", [place for place in PLACES if place[0] != "results"], ids="/".join)
def test_null_stands_for_what_is_not_known(place: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "results_1.json").write_text(replaced(place, None))
    (score,) = comparison(tmp_path).rows[0].scores
    assert score == Score(0.5, 0.1)


COUNTS = (("n-samples", "piqa", "effective"), ("n-samples", "piqa", "original"), ("task_hashes", "piqa"))


@pytest.mark.parametrize("place", COUNTS, ids="/".join)
def test_counts_and_hashes_of_another_type_are_refused(place: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results_1.json").write_text(json.dumps(WHOLE))
    for value in (True, [1], {"a": 1}, 1.5):
        (tmp_path / "results_1.json").write_text(replaced(place, value))
        with refused("results_1.json", place[0]):
            comparison(tmp_path / "one", tmp_path / "results_1.json")


HUGE: dict[str, tuple[str, Any, Score | None]] = {
    "a score that no float holds": ("acc,none", 10**400, None),
    "an error that no float holds": ("acc_stderr,none", 10**400, Score(0.5, None)),
    "an error whose square no float holds": ("acc_stderr,none", 1e300, Score(0.5, 1e300)),
}


@pytest.mark.parametrize("case", HUGE)
def test_huge_numbers(case: str, tmp_path: Path) -> None:
    name, value, expected = HUGE[case]
    (tmp_path / "results_1.json").write_text(replaced(("results", "piqa", name), value))
    if expected is None:
        with refused("results_1.json", "score"):
            comparison(tmp_path)
        return
    found = comparison(tmp_path)
    assert found.rows[0].scores == (expected,) and found.averages == (expected,)


def test_bad_folders_are_refused(write_results: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused(f"--results {tmp_path / 'empty'}", "results_*.json", "--output_path"):
        comparison(tmp_path / "empty")
    with refused("--results gone", "--output_path"):
        comparison(Path("gone"))
    folders = [write_results(name, piqa=task(acc=(0.7, 0.1))) / "model__x" for name in ("a", "b")]
    with refused(f"--results {tmp_path}", *folders):
        comparison(tmp_path)
