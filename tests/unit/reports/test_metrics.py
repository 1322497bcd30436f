"""Reading a run's history: which lines count after a resume, and the errors of bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.ltd.reports.metrics import read_history
from tests.support_errors import assert_names, refused


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


def test_a_damaged_line_far_down_is_left_out_and_named(write_run, train) -> None:
    folder = write_run("run", *(train(step) for step in range(1, 2500)))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2222] = lines[2222][:-1]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    history = read_history(folder, "run")
    assert_names(history.damage or "", folder / "metrics.jsonl", "line 2223")
    assert history.iterations == tuple(step for step in range(1, 2500) if step != 2222)


STEP = {"kind": "train", "iteration": 2, "loss": 1.0, "consumed_tokens": 1, "consumed_layer_tokens": 1}
STEP |= {"step_flops": 1, "dense_step_flops": 1, "step_seconds": 1.0}


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"", b'{"iteration": 1}', b"[1]", b'{"kind": "run"}',
        b'{"kind": "train", "iteration": 2}', b"{}, {}",
        b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000, b'{"kind": "validation", "iteration": 1}',
        *(json.dumps({**STEP, **change}).encode() for change in (
            {"iteration": "2"}, {"iteration": True}, {"step_flops": None}, {"step_flops": "1"}, {"kept_tokens": [1]},
            {"consumed_tokens": 10**400},
        )),
    ],
)  # fmt: skip
def test_a_damaged_line_is_left_out_and_named(line: bytes, write_run, train) -> None:
    folder = write_run("run", train(1))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n" + json.dumps(STEP).encode() + b"\n")
    history = read_history(folder, "run")
    assert_names(history.damage or "", folder / "metrics.jsonl", "line 3")
    assert history.iterations == (1, 2) and history.validations == ()


def test_a_folder_without_a_run_is_refused(tmp_path: Path, write_run) -> None:
    with refused(tmp_path / "metrics.jsonl", "--log-dir"):
        read_history(tmp_path, "run")
    folder = write_run("empty")
    with refused(folder / "metrics.jsonl", "--log-dir"):
        read_history(folder, "run")
