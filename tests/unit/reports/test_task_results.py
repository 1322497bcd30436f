"""Result files and flags of the comparison of tasks that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_bad_folders_are_refused(write_results: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused(f"--results {tmp_path / 'empty'}", "results_*.json", "--output_path"):
        comparison(tmp_path / "empty")
    with refused("--results gone", "--output_path"):
        comparison(Path("gone"))
    folders = [write_results(name, piqa=task(acc=(0.7, 0.1))) / "model__x" for name in ("a", "b")]
    with refused(f"--results {tmp_path}", *folders):
        comparison(tmp_path)
