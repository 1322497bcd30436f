"""Notes on the page that warn the reader of unusual runs."""

from __future__ import annotations

import json

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.reports.metrics import RunHistory, read_history
from megatron.ltd.reports.page.notes import notes
from tests.support_errors import assert_names


def about(*flags: str, resumed_at: int = 0, torch: str = "2", num_steps: int = 4) -> dict[str, object]:
    config = parse_run_config(["--train-data-path", "d", "--tokenizer-type", "ByteTokenizer", "--lr", "3e-4", *flags])
    return {
        "kind": "run", "time": "2026-01-01T00:00:00+0000", "config": json.loads(json.dumps(config.to_dict())),
        "versions": {"torch": torch}, "num_steps": num_steps, "resumed_at": resumed_at,
    }  # fmt: skip


def history(*lines: dict, first: dict | None = None, starts: tuple[dict, ...] = ()) -> RunHistory:
    first = first or about("--train-iters", "4")
    return RunHistory("run", (first, *starts)[-1], tuple(lines), (), (), (first, *starts))


def test_a_run_that_went_well_has_no_notes(train) -> None:
    assert list(notes(history(*({**train(step), "kept_tokens": 8} for step in (1, 2, 3, 4))))) == []


def test_unfinished_and_still_dropping_runs_are_noted(train) -> None:
    (note,) = notes(history(train(1)))
    assert_names(note, "Not finished", "step 1 of 4")
    (note,) = notes(history(*(train(step) for step in (1, 2, 3, 4))))
    assert_names(note, "dropped tokens", "4 of 8")


def test_resumes_and_their_changes_are_noted(train) -> None:
    again = about("--train-iters", "4", "--lr", "1e-4", "--sequence-parallel", "--tensor-model-parallel-size", "2",
                  "--load", "there", resumed_at=2, torch="3")  # fmt: skip
    later = about("--train-iters", "4", "--lr", "1e-4", "--sequence-parallel", "--tensor-model-parallel-size", "2",
                  "--load", "there", resumed_at=3, torch="3")  # fmt: skip
    lines = [{**train(step), "kept_tokens": 8} for step in (1, 2, 3, 4)]
    rerun = about("--train-iters", "4", "--lr", "1e-4", resumed_at=4)  # of the finished run, which it leaves as it is
    resumes, changes = notes(history(*lines, starts=(again, later, rerun)))
    assert_names(resumes, "2 times", "step 2 (2026-01-01T00:00:00+0000)", "step 3 (2026-01-01T00:00:00+0000)")
    assert_names(
        changes, "step 2", "--lr 0.0003, then 0.0001", "--tensor-model-parallel-size 1, then 2",
        "--sequence-parallel not given, then given", "torch 2, then 3",
    )  # fmt: skip


def test_non_finite_values_and_missing_steps_are_noted(write_run, train) -> None:
    lines = [{**train(step), "grad_norm": 1.0} for step in (11, 12, 13, 15, 17, 18)]
    for place in (1, 2, 4):
        lines[place] |= {"loss": None, "grad_norm": None}
    lines[5]["grad_norm"] = None
    bad = {"kind": "validation", "iteration": 18, "loss": None, "perplexity": None}
    found = list(notes(read_history(write_run("run", *lines, bad), "run")))
    wanted = (
        ("flags", "versions", "length"), ("loss", "3 times", "step 12-13, 17"), ("gradient norm", "once", "step 18"),
        ("held-out", "once", "step 18"), ("step 11", "FLOPs"), ("2 steps", "missing"),
    )  # fmt: skip
    assert len(found) == len(wanted)
    for note, names in zip(found, wanted, strict=True):
        assert_names(note, *names)


def test_long_lists_of_steps_are_shortened(train) -> None:
    lines = [{**train(step), "kept_tokens": 8, "loss": None if step % 2 else 1.0} for step in range(1, 41)]
    (_, note) = notes(history(*lines, first=about("--train-iters", "50", num_steps=50)))
    assert_names(note, "20 times", "step 1, 3, 5, 7, 9, 11, 13, 15, and 12 more")
