"""The figures of the summary table, against values computed by hand."""

from __future__ import annotations

import re

import pytest

from megatron.ltd.reports.metrics import read_history
from megatron.ltd.reports.runs import read_runs
from megatron.ltd.reports.summary import RunSummary, SummaryConfig, busy_note, summarize, summary_table


def validation(iteration: int, loss: float, perplexity: float | None = 2.0) -> dict[str, object]:
    return {"kind": "validation", "iteration": iteration, "loss": loss, "perplexity": perplexity}


def test_table(write_run, train) -> None:
    """The saving: 8 seconds instead of 10."""
    dropped = write_run(
        "dropped",
        *(train(step) for step in (1, 2)),
        validation(2, 4.5),
        *(train(step) for step in (3, 4)),
        validation(4, 4.25),
    )
    dense = write_run(
        "dense", *(train(step, flops=40, seconds=2.5) for step in (1, 2, 3, 4)), validation(4, 4.0), method="dense"
    )
    histories = read_runs(SummaryConfig(runs=(str(dropped), str(dense)), names=("random-LTD", "dense")))
    lines = summary_table([summarize(history) for history in histories]).splitlines()
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["", "random-LTD", "dense"],
        ["validation loss", "4.2500", "4.0000"],
        ["perplexity", "2.00", "2.00"],
        ["steps", "4", "4"],
        ["tokens", "64", "64"],
        ["layer tokens", "96", "96"],
        ["FLOPs", "120 FLOP", "160 FLOP"],
        ["seconds in training steps", "8.0", "10.0"],
        ["tokens a second", "8", "6"],
        ["saved, theoretical (FLOPs)", "25.0 %", "-"],
        ["saved, measured (seconds)", "20.0 %", "-"],
    ]
    assert len({len(line) for line in lines}) == 1, "columns line up"


def test_runs_of_different_length_are_compared_per_token(write_run, train) -> None:
    short = read_history(write_run("short", train(1, seconds=1.0)), "short")
    dense = read_history(write_run("dense", *(train(step, seconds=2.0) for step in (1, 2)), method="dense"), "dense")
    assert summarize(short).measured_saving(summarize(dense)) == pytest.approx(0.5)


def test_a_stall_is_no_saving(write_run, train) -> None:
    """Steps of two sizes, of which one and then most stall: 3 x 1 + 4 x 1.5 seconds are fast, of 7 x 2 dense ones."""
    seconds = [(30, 1.0), (30, 1.0), (30, 60.0), (40, 9.0), (40, 1.5), (40, 9.0), (40, 1.5)]
    lines = [train(step, flops=flops, seconds=taken) for step, (flops, taken) in enumerate(seconds, start=1)]
    stalled = summarize(read_history(write_run("stalled", *lines), "stalled"))
    dense_lines = [train(step, flops=40, seconds=2.0) for step in range(1, 8)]
    dense = summarize(read_history(write_run("dense", *dense_lines, method="dense"), "dense"))
    assert (stalled.seconds, stalled.fast_seconds, dense.fast_seconds) == (83.0, 9.0, 14.0)
    assert stalled.measured_saving(dense) == pytest.approx(5 / 14)


def test_a_busy_machine_is_said_and_disturbs_no_processor_seconds(write_run, train) -> None:
    """All steps of one run take ten times as long: the saving by seconds would be -700 %."""

    def run(name: str, method: str, flops: int, cpu: float, clock: float) -> RunSummary:
        times = {"step_cpu_seconds": cpu, "step_idle_seconds": clock - cpu}
        lines = [train(step, flops=flops, seconds=clock) | times for step in (1, 2, 3)]
        return summarize(read_history(write_run(name, *lines, method=method), name))

    dense = run("dense", "dense", 40, 2.0, 2.0)
    quiet, busy = run("quiet", "random_ltd", 30, 1.6, 1.6), run("busy", "random_ltd", 30, 1.6, 16.0)
    assert quiet.measured_saving(dense) == busy.measured_saving(dense) == pytest.approx(0.2)
    assert "saved, measured (CPU seconds)" in summary_table([busy, dense])
    assert busy_note([quiet, dense]) is None
    note = busy_note([busy, dense])
    assert note is not None and "90% of busy, 0% of dense" in note


def test_perplexities_before_training_and_lowest_are_shown_if_they_add_something(write_run, train) -> None:
    evaluated = [validation(0, 3.0, 9.5), validation(1, 1.0, 4.25), validation(2, 2.0, 5.0)]
    folders = [
        write_run("finetuned", train(1), train(2), *evaluated),
        write_run("diverged", train(1), validation(0, 2.0, 9.5), validation(1, 4.0, None)),
    ]
    rows = summary_table([summarize(read_history(folder, folder.name)) for folder in folders]).splitlines()
    assert [row.split() for row in rows[2:5]] == [
        ["perplexity", "5.00", "-"], ["perplexity,", "lowest", "4.25", "9.50"],
        ["perplexity", "before", "training", "9.50", "9.50"],
    ]  # fmt: skip


def test_without_a_dense_run_no_saving_is_measured(write_run, train) -> None:
    table = summary_table([summarize(read_history(write_run("run", train(1)), "run"))])
    assert "theoretical" in table and "measured" not in table
    assert table.splitlines()[1].split() == ["validation", "loss", "-"]
