"""The table of stages, against sums computed by hand and against the plan of the run."""

from __future__ import annotations

from megatron.ltd.format import format_count, format_flops
from megatron.ltd.methods.base import ModelFacts
from megatron.ltd.methods.random_ltd.method import RandomLTD, RandomLTDConfig
from megatron.ltd.plan.accounting import ModelShape, dense_step_flops, layer_tokens, step_flops
from megatron.ltd.plan.run_plan import plan_run
from megatron.ltd.plan.table import MOST_ROWS, stage_rows
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.build import logged_stages
from megatron.ltd.schedules.batch_size import BatchSchedule


def log_rows(history: RunHistory) -> tuple[list[str], list[list[str]]]:
    return stage_rows(logged_stages(history), history.steps[-1]["num_layers"])


def test_rows_are_sums_of_their_steps(train) -> None:
    lines = [train(step, seconds=step, flops=20 if step < 4 else 40) for step in range(1, 7)]
    for line in lines:
        line["kept_tokens"] = 4 if line["iteration"] < 4 else 8
    header, rows = log_rows(RunHistory("run", {}, tuple(lines), ()))
    assert header[:4] == ["steps", "batch", "kept tokens", "tokens"]
    assert rows == [
        ["1 - 3", "2", "4", "48", "72", "1.00e-3", "60 FLOP", "50.0%", "33.3%", "2"],
        ["4 - 6", "2", "8", "48", "72", "1.00e-3", "120 FLOP", "100.0%", "66.7%", "5"],
    ]


def test_depth_is_shown_if_layers_are_dropped(train) -> None:
    lines = tuple({**train(step), "depth": depth} for step, depth in ((1, 2.0), (2, 1.0)))
    header, rows = log_rows(RunHistory("run", {}, lines, ()))
    assert dict(zip(header, rows[0], strict=True))["depth"] == "1.5"


def test_a_log_that_begins_later_lacks_the_tokens_of_its_first_step(train) -> None:
    _, rows = log_rows(RunHistory("run", {}, tuple(train(step) for step in (11, 12)), ()))
    assert rows[0][:5] == ["11 - 12", "2", "4", "-", "-"]


def test_a_run_that_went_as_planned_shows_the_plan() -> None:
    """Every row of a run's logged steps equals the difference of the plan's totals at its ends."""
    shape = ModelShape(4, 8, 16, 2, 2, 4, False, 64, 64)
    config = RandomLTDConfig(random_ltd=True, ltd_min_kept_tokens=8, ltd_growth_steps=300, ltd_granularity=2)
    method = RandomLTD.build(config, ModelFacts(4, 64, 1))
    plan = plan_run(shape, BatchSchedule(4, None), method.stages, 400)
    lines = []
    for step in range(400):
        step_plan = method.plan(step)
        line = {"iteration": step + 1, "loss": 1.0, "lr": 0.1, "batch_size": 4, "depth": 4.0, "num_layers": 4}
        line |= {"kept_tokens": step_plan.min_kept_tokens, "consumed_tokens": 256 * (step + 1), "step_seconds": 1.0}
        line |= {"step_flops": step_flops(shape, step_plan, 4), "dense_step_flops": dense_step_flops(shape, 4)}
        consumed = layer_tokens(step_plan, 4) + (lines[-1]["consumed_layer_tokens"] if lines else 0)
        lines.append({**line, "consumed_layer_tokens": consumed})
    header, rows = log_rows(RunHistory("run", {}, tuple(lines), ()))
    assert len(rows) == MOST_ROWS
    end = 0
    for row in (dict(zip(header, cells, strict=True)) for cells in rows):
        first, last = (int(step) for step in row["steps"].split(" - "))
        assert first == end + 1
        before, end = end, last
        flops = plan.flops(end) - plan.flops(before)
        kept = [method.plan(step).min_kept_tokens for step in (before, end - 1)]
        assert row["kept tokens"] == " - ".join(map(str, dict.fromkeys(kept)))
        assert row["tokens"] == format_count(plan.tokens(end) - plan.tokens(before))
        assert row["layer tokens"] == format_count(plan.layer_tokens(end) - plan.layer_tokens(before))
        assert row["FLOPs"] == format_flops(flops) and row["share"] == f"{flops / plan.flops(400):.1%}"
        assert row["of dense"] == f"{flops / (plan.dense_flops(end) - plan.dense_flops(before)):.1%}"
    assert end == 400
