"""Scores from lm-eval's files and from a run's own lines."""

from __future__ import annotations

import json
from pathlib import Path

from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.build import curve_rows, read_scores
from tests.support_errors import refused


def write(path: Path, **tasks: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {task: {"original": 90, "effective": 50} for task in tasks}
    path.write_text(json.dumps({"results": tasks, "n-shot": dict.fromkeys(tasks, 0), "n-samples": counts}))
    return path


COPA = {"alias": "copa", "acc,none": 0.5, "acc_stderr,none": 0.05}


def test_files_become_rows(tmp_path: Path) -> None:
    file = write(
        tmp_path / "results_a.json",
        copa=COPA,
        triviaqa={"exact_match,remove_whitespace": 0.25, "exact_match_stderr,remove_whitespace": "N/A"},
        wikitext={"word_perplexity,none": 123.456, "word_perplexity_stderr,none": "N/A", "of_noise,none": 5.48235e12},
    )
    assert read_scores([str(file)]) == [
        ("copa", "acc", "0.5000", "0.0500", "0", "50", "results_a.json"),
        ("triviaqa", "exact_match (remove_whitespace)", "0.2500", "-", "0", "50", "results_a.json"),
        ("wikitext", "word_perplexity", "123.46", "-", "0", "50", "results_a.json"),
        ("wikitext", "of_noise", "5.482e+12", "-", "0", "50", "results_a.json"),
    ]


def test_each_filter_has_a_row(tmp_path: Path) -> None:
    file = write(tmp_path / "results_a.json", gsm8k={"exact_match,strict": 0.25, "exact_match,flexible": 0.5})
    assert [row[:3] for row in read_scores([str(file)])] == [
        ("gsm8k", "exact_match (strict)", "0.2500"),
        ("gsm8k", "exact_match (flexible)", "0.5000"),
    ]


def test_the_later_score_of_a_task_counts(tmp_path: Path) -> None:
    """In a folder the time in the file name decides, among several paths their order; each row names its file."""
    folder = tmp_path / "model"
    newer = write(folder / "results_2026-01-02T00-00-00.json", copa={**COPA, "acc,none": 0.75})
    older = write(folder / "results_2026-01-01T00-00-00.json", copa=COPA, rte={"acc,none": 0.5})
    rows = {row[0]: (row[2], row[6]) for row in read_scores([str(folder)])}
    assert rows == {"copa": ("0.7500", newer.name), "rte": ("0.5000", older.name)}
    assert [row[2] for row in read_scores([str(newer), str(older)])] == ["0.5000", "0.5000"]


def test_a_runs_own_lines_become_rows(train) -> None:
    lines = (
        {"kind": "scores", "iteration": 1, "copa/acc": 0.5},
        {"kind": "scores", "iteration": 2, "copa/acc": 0.75, "rte/acc": 1.0},
    )
    assert list(curve_rows(RunHistory("run", {}, (train(1),), (), lines))) == [
        ("copa/acc", "2", "0.5000", "0.7500", "2"),
        ("rte/acc", "1", "1.0000", "1.0000", "2"),
    ]


def test_errors_name_the_flag_of_the_file(tmp_path: Path) -> None:
    for content in ("{", "[1]", ""):
        path = tmp_path / "results_a.json"
        path.write_text(content)
        with refused(f"--scores {path}"):
            read_scores([str(path)])
    with refused(f"--scores {tmp_path / 'b'}"):
        read_scores([str(tmp_path / "b")])
