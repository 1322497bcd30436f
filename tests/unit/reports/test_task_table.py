"""Tables of lm-eval's results: figures against values computed by hand, notes on differences, and refused files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.commands import compare_runs
from megatron.ltd.errors import run_command
from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_GROUP, PAPER_TASKS
from megatron.ltd.reports.task_results import Score, read_results
from megatron.ltd.reports.task_table import average
from megatron.ltd.reports.task_table_text import to_latex, to_markdown
from tests.end_to_end.runs import ending
from tests.support_errors import assert_refused, refused
from tests.support_task_results import Write, comparison, task


def test_the_standard_error_of_the_average_is_that_of_repeated_tests() -> None:
    """Compared with the spread of 20,000 repetitions that draw the answers of three unequal tasks again."""
    import numpy as np

    shares, sizes = np.array([0.3, 0.5, 0.8]), np.array([50, 400, 1000])
    drawn = np.random.default_rng(0).binomial(sizes, shares, size=(20_000, 3)) / sizes
    errors = np.sqrt(shares * (1 - shares) / sizes)
    found = average([Score(share, error) for share, error in zip(shares, errors, strict=True)]).standard_error
    assert found == pytest.approx(drawn.mean(axis=1).std(), rel=0.02)


def cells(table: str, separator: str) -> list[list[str]]:
    """The cells of every line without their padding."""
    return [[cell.strip() for cell in line.strip("| ").split(separator)] for line in table.splitlines()]


def test_markdown(two: list[Path]) -> None:
    """The error of the average of 0.7 and 0.5, from 0.03 and 0.04, is sqrt(0.03² + 0.04²) / 2 = 0.05 / 2."""
    header, _, *rows, empty, note = cells(to_markdown(comparison(*two)), "|")
    assert header == ["task", "metric", "dense", "random-LTD"] and empty == [""]
    assert rows == [
        ["PIQA", "acc_norm", "70.0 ± 3.0", "72.0 ± 6.0"],
        ["BoolQ", "acc", "50.0 ± 4.0", "58.0 ± 8.0"],
        ["**average of 2 tasks**", "", "**60.0 ± 2.5**", "**65.0 ± 5.0**"],
        ["WikiText-2", "word_perplexity (lower is better)", "20.00", "19.50"],
    ]
    assert note[0].startswith("- the average is over 2 of the paper's 19 tasks")


HOSTILE = "a\n\\input{/etc/passwd} <script>x()</script> | & $"


def test_names_are_text(two: list[Path]) -> None:
    """A name with line ends and markup stays one cell, and adds neither HTML nor a command of LaTeX."""
    table = comparison(*two, names=(HOSTILE, "b"))
    table = replace(table, notes=(*table.notes, HOSTILE))
    markdown, latex = to_markdown(table), to_latex(table)
    assert (
        "<script" not in markdown and len(markdown.splitlines()) == len(to_markdown(comparison(*two)).splitlines()) + 1
    )
    for line in latex.splitlines():
        assert "\\input" not in line or line.startswith("% ")
    assert len(latex.splitlines()) == len(to_latex(comparison(*two)).splitlines()) + 1


def test_latex(two: list[Path]) -> None:
    note, *lines = cells(to_latex(comparison(*two, names=("dense_1 &co", "b"))), " & ")
    assert note[0].startswith("% the average is over 2 of the paper's 19 tasks")
    assert lines == [
        [r"\begin{tabular}{llrr}"],
        [r"\toprule"],
        ["task", "metric", r"dense\_1 \&co", r"b \\"],
        [r"\midrule"],
        ["PIQA", r"acc\_norm", r"70.0 $\pm$ 3.0", r"72.0 $\pm$ 6.0 \\"],
        ["BoolQ", "acc", r"50.0 $\pm$ 4.0", r"58.0 $\pm$ 8.0 \\"],
        [r"\midrule"],
        ["average of 2 tasks", "", r"60.0 $\pm$ 2.5", r"65.0 $\pm$ 5.0 \\"],
        [r"\midrule"],
        ["WikiText-2", r"word\_perplexity (lower is better)", "20.00", r"19.50 \\"],
        [r"\bottomrule"],
        [r"\end{tabular}"],
    ]


def test_the_papers_average_needs_no_note(write_results: Write) -> None:
    run = write_results("run", **{one.name: task(**{one.metric: (0.25, 0.01)}) for one in reversed(PAPER_TASKS)})
    found = comparison(run)
    assert [row.task for row in found.rows] == [one.name for one in PAPER_TASKS]
    assert (found.num_averaged, found.notes) == (19, ())
    assert found.averages == (Score(0.25, pytest.approx(0.01 / 19**0.5)),)


def test_metrics_can_be_chosen(two: list[Path]) -> None:
    chosen = comparison(*two, metrics=("piqa=acc", "wikitext=bits_per_byte"))
    assert [row.metric for row in chosen.rows] == ["acc", "acc", "bits_per_byte"]
    assert "piqa: acc, where the paper reports acc_norm" in chosen.notes


def test_metrics_of_other_tasks(write_results: Write) -> None:
    run = write_results(
        "run", a=task(x=(0.5, 0.1), acc=(0.2, 0.1)), b=task(f1=(0.4, 0.1), exact_match=(0.6, 0.1)), c=task(bleu=(30, 1))
    )
    found = comparison(run)
    assert [(row.metric, row.is_averaged) for row in found.rows] == [
        ("acc", True),
        ("exact_match", True),
        ("bleu", False),
    ]
    assert found.averages == (Score(pytest.approx(0.4), pytest.approx(0.02**0.5 / 2)),) and found.notes == ()


def test_several_filters(tmp_path: Path) -> None:
    values = {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.1, "exact_match,flexible": 0.5}
    (tmp_path / "r.json").write_text(json.dumps({"results": {"gsm8k": values}}))
    assert comparison(tmp_path / "r.json").averages == (Score(0.25, 0.1),)
    chosen = comparison(tmp_path / "r.json", metrics=("gsm8k=exact_match,flexible",))
    assert chosen.averages == (Score(0.5, None),)


def test_tasks_missing_in_a_run_are_left_out_of_the_average_with_a_note(write_results: Write) -> None:
    found = comparison(
        write_results("a", piqa=task(acc_norm=(0.7, 0.1)), boolq=task(acc=(0.5, 0.1)), copa=task(acc=(0.9, 0.1))),
        write_results("b", boolq=task(acc=(0.6, 0.1))),
    )
    assert [score.value for score in found.averages or ()] == [0.5, 0.6] and found.num_averaged == 1
    note = "the average is over the tasks that all have; left out: piqa (missing in b), copa (missing in b)"
    assert found.notes[0] == note
    assert ["PIQA", "acc_norm", "70.0 ± 10.0", "-"] in cells(to_markdown(found), "|")
    nothing = comparison(
        write_results("c", piqa=task(acc_norm=(0.7, 0.1))), write_results("d", boolq=task(acc=(0.5, 0.1)))
    )
    assert nothing.averages is None and "average of" not in to_markdown(nothing)


def test_differences_get_a_note(write_results: Write) -> None:
    found = comparison(
        write_results("a", piqa=task(20, of=1838, acc_norm=(0.7, 0.1)), boolq=task(acc=(0.5, 0.1))),
        write_results(
            "b",
            version="0.4.12",
            piqa=task(1838, acc_norm=(0.7, 0.1)),
            boolq=task(shots=5, version=2.0, acc=(0.5, 0.1)),
        ),
    )
    assert found.notes[1:] == (
        "lm-eval's versions differ: 0.4.13 in a, 0.4.12 in b",
        "piqa: samples differ: 20 in a, 1838 in b",
        "piqa: a part of the samples only (a 20 of 1838)",
        "boolq: task versions differ: 1.0 in a, 2.0 in b",
        "boolq: few-shot examples differ: 0 in a, 5 in b",
    )


def test_different_documents_or_prompts_get_a_note(two: list[Path]) -> None:
    """lm-eval stores hashes of them when it logs samples."""
    for folder, content_hash in zip(two, ("abc", "def"), strict=True):
        (path,) = folder.rglob("*.json")
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "task_hashes": {"piqa": content_hash, "boolq": "x"}})
        )
    assert comparison(*two).notes[1:] == ("piqa: not the same documents or prompts in all",)


def test_the_newest_file_of_a_folder_is_used(write_results: Write) -> None:
    write_results("run", stamp="2026-01-31T12-00-00.5", boolq=task(acc=(0.1, 0.1)))
    write_results("run", stamp="2026-02-01T09-00-00.5", boolq=task(acc=(0.2, 0.1)))
    run = write_results("run", stamp="2025-12-31T23-00-00.5", boolq=task(acc=(0.3, 0.1)))
    found = comparison(run)
    assert found.rows[0].scores == (Score(0.2, 0.1),)
    assert "run: 2 older result files left out, results_2026-02-01T09-00-00.5.json being the newest" in found.notes
    assert read_results(run / "model__x" / "results_2025-12-31T23-00-00.5.json").name == "model__x"


def test_files_of_the_same_model_are_combined(write_results: Write) -> None:
    write_results("run", stamp="2026-01-01", iteration=500, copa=task(acc=(0.9, 0.1)))
    write_results("run", stamp="2026-01-02", iteration=600, boolq=task(acc=(0.1, 0.1)), rte=task(acc=(0.3, 0.1)))
    run = write_results("run", stamp="2026-01-03", iteration=600, boolq=task(acc=(0.2, 0.1)))
    found = comparison(run)
    assert {row.task: row.scores[0].value for row in found.rows if row.scores[0]} == {"boolq": 0.2, "rte": 0.3}
    assert found.notes[1:] == (
        "run: rte from older result files of the same model",
        "run: 1 older result files left out, results_2026-01-03.json being the newest",
    )


def test_tasks_can_be_chosen(two: list[Path]) -> None:
    assert [row.task for row in comparison(*two, tasks=("boolq",)).rows] == ["boolq"]
    assert [row.task for row in comparison(*two, tasks=(PAPER_GROUP,)).rows] == ["piqa", "boolq", "wikitext"]
    with refused("--tasks boolq copa", "boolq", "piqa", "wikitext"):
        comparison(*two, tasks=("boolq", "copa"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """``run("--results", folder)`` calls compare_runs.py; its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        status, err = ending(lambda: run_command(compare_runs.main), "compare_runs.py", *words)
        return status, capsys.readouterr().out, err

    return call


def test_the_command(two: list[Path], repository: Path, run: Callable[..., Any]) -> None:
    """The table is printed, or written to a file, which is never overwritten."""
    table, flags = to_latex(comparison(*two)), ["--results", *two, "--format", "latex"]
    script = [sys.executable, repository / "tools" / "compare_runs.py", *flags]
    assert subprocess.check_output(script, env={"PYTHONPATH": str(repository)}, text=True) == table
    assert run(*flags, "--output", "t.tex") == (0, "table of 2 runs: t.tex\n", "")
    assert Path("t.tex").read_text() == table
    for output in ("t.tex", "no/t.tex"):
        status, out, err = run("--results", *two, "--output", output)
        assert out == ""
        assert_refused(status, err, f"--output {output}")
    assert Path("t.tex").read_text() == table


def test_half_of_a_surrogate_pair_is_written_as_an_escape(run: Callable[..., Any]) -> None:
    Path("results_1.json").write_text('{"results": {"a\\ud800b": {"acc,none": 0.5}}}')
    status, out, err = run("--results", ".")
    assert (status, err) == (0, "") and "| a\\ud800b | acc | 50.0 |" in out
    assert run("--results", ".", "--output", "table.md")[0] == 0 and Path("table.md").read_text() == out
