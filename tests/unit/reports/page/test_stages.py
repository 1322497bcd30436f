"""The table of stages of a log, against sums computed by hand."""

from __future__ import annotations

from megatron.ltd.plan.table import stage_rows
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.build import logged_stages


def log_rows(*lines: dict) -> tuple[list[str], list[list[str]]]:
    return stage_rows(logged_stages(RunHistory("run", {}, lines, ())), 2)


def test_rows_are_sums_of_their_steps(train) -> None:
    lines = [train(step, seconds=step, flops=20 if step < 4 else 40) for step in range(1, 7)]
    for line in lines:
        line |= {"kept_tokens": 4, "depth": 0.5 * line["iteration"]} if line["iteration"] < 4 else {"kept_tokens": 8}
    header, rows = log_rows(*lines)
    assert header[:5] == ["steps", "batch", "kept tokens", "depth", "tokens"]
    assert rows == [
        ["1 - 3", "2", "4", "1.0", "48", "72", "1.00e-3", "60 FLOP", "50.0%", "33.3%", "2"],
        ["4 - 6", "2", "8", "2.0", "48", "72", "1.00e-3", "120 FLOP", "100.0%", "66.7%", "5"],
    ]


def test_a_log_that_begins_later_lacks_the_tokens_of_its_first_step(train) -> None:
    _, rows = log_rows(train(11), train(12))
    assert rows[0][:5] == ["11 - 12", "2", "4", "-", "-"]
