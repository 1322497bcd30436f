"""Reading a run's history: which lines count after a resume, and the errors of bad files."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.reports.metrics import read_history
from tests.support_errors import refused


def test_after_a_resume_only_the_later_lines_count(write_run, train) -> None:
    """A run stopped after step 4 and resumed at step 2: its old lines of steps 3 and 4 no longer count."""
    folder = write_run(
        "run",
        *(train(step, seconds=10.0) for step in (1, 2, 3, 4)),
        {"kind": "validation", "iteration": 4, "loss": 9.0, "perplexity": 1.0},
        {"kind": "run", "method": "random-LTD", "resumed_at": 2},
        train(3, loss=3.5, seconds=1.0),
    )
    history = read_history(folder, "run")
    assert [step["iteration"] for step in history.steps] == [1, 2, 3]
    assert history.steps[-1]["loss"] == 3.5
    assert history.seconds == (10.0, 20.0, 21.0)
    assert history.validations == ()


def test_totals_accumulate(write_run, train) -> None:
    history = read_history(write_run("run", *(train(step, flops=10 * step) for step in (1, 2, 3))), "run")
    assert history.flops == (10, 30, 60)
    assert [history.place_of(iteration) for iteration in (1, 2, 3)] == [0, 1, 2]


def test_an_incomplete_last_line_is_skipped(write_run, train) -> None:
    folder = write_run("run", train(1))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iterat')
    assert len(read_history(folder, "run").steps) == 1


def test_scores_and_starts_are_kept_except_those_of_lost_steps(write_run, train) -> None:
    scores = [{"kind": "scores", "iteration": step, "copa/acc": step / 4} for step in (1, 2)]
    again = {"kind": "run", "method": "random-LTD", "resumed_at": 1}
    history = read_history(write_run("run", train(1), scores[0], train(2), scores[1], again, train(2)), "run")
    assert history.scores == (scores[0],)
    assert [start["resumed_at"] for start in history.starts] == [0, 1] and history.about == again


def test_a_bad_line_far_down_is_named_by_its_number(write_run, train) -> None:
    folder = write_run("run", *(train(step) for step in range(1, 2500)))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2222] = lines[2222][:-1]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with refused(folder / "metrics.jsonl", "line 2223"):
        read_history(folder, "run")


@pytest.mark.parametrize(
    "line",
    ["not json", "", '{"iteration": 1}', "[1]", '{"kind": "run"}', '{"kind": "train", "iteration": 2}', "{}, {}"],
)
def test_a_foreign_line_is_named(line: str, write_run, train) -> None:
    folder = write_run("run", train(1))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with refused(folder / "metrics.jsonl", "line 3"):
        read_history(folder, "run")


def test_a_folder_without_a_run_is_refused(tmp_path: Path, write_run) -> None:
    with refused(tmp_path / "metrics.jsonl", "--log-dir"):
        read_history(tmp_path, "run")
    folder = write_run("empty")
    with refused(folder / "metrics.jsonl", "--log-dir"):
        read_history(folder, "run")
