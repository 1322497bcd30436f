"""Result files and flags that cannot be compared: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.errors import UserError
from megatron.ltd.reports.task_table import CompareConfig
from tests.support_task_results import Write, comparison, task


def test_bad_flags(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--results is missing"):
        CompareConfig()
    with pytest.raises(UserError, match="--names has 1 values and --results 2: give one name a result"):
        comparison(*two, names=("a",))
    with pytest.raises(UserError, match="--names: two of the results are called a; give each a name of its own"):
        comparison(*two, names=("a", "a"))
    with pytest.raises(UserError, match="--names: two of the results are called dense"):
        comparison(two[0], two[0])
    with pytest.raises(UserError, match="--metrics piqa: expected a task and its metric, such as hellaswag=acc"):
        comparison(*two, metrics=("piqa",))
    with pytest.raises(UserError, match="--metrics piqa=f1: the results have acc, acc_norm$"):
        comparison(*two, metrics=("piqa=f1",))
    with pytest.raises(UserError, match="--metrics copa=...: no result has this task; they have boolq, piqa, wikitext"):
        comparison(*two, metrics=("copa=acc",))


def test_no_metric_in_common(write_results: Write) -> None:
    with pytest.raises(UserError, match="piqa has no metric that all of them have; leave it out with --tasks"):
        comparison(write_results("a", piqa=task(acc=(0.7, 0.1))), write_results("b", piqa=task(f1=(0.7, 0.1))))


BAD_FILES = {
    "cut short": ('{"results": {"piqa": {"acc', r"no whole JSON \(Unterminated .* at line 1\); give .* cut short$"),
    "something else": ('{"kind": "run", "loss": 1}', "expected lm-eval's results, .* found the fields kind, loss"),
    "a list": ("[1]", "expected lm-eval's results, .* found list"),
    "samples": ('{"results": [1]}', "expected lm-eval's results"),
    "no score": ('{"results": {"piqa": {"alias": "piqa", "acc,none": "N/A"}}}', "holds no score; give the results of"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_none(case: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[case]
    (tmp_path / "results_1.json").write_text(content)
    for path in (tmp_path, tmp_path / "results_1.json"):
        with pytest.raises(UserError, match=message) as raised:
            comparison(path)
        assert str(tmp_path / "results_1.json") in str(raised.value) and "\n" not in str(raised.value)


def test_folders_that_are_none(write_results: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--results .*empty: holds no results_\*.json; give the --output_path"):
        comparison(tmp_path / "empty")
    with pytest.raises(UserError, match="--results gone: no such file or folder"):
        comparison(Path("gone"))
    write_results("a", piqa=task(acc=(0.7, 0.1)))
    write_results("b", piqa=task(acc=(0.7, 0.1)))
    with pytest.raises(
        UserError, match="holds results of several models; give one of the folders .*/a/model__x, .*/b/"
    ):
        comparison(tmp_path)
