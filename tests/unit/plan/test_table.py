"""The table of a run's stages, as the header and ``--plan`` print it."""

from __future__ import annotations

import pytest

from megatron.ltd.plan.run_plan import plan_run
from megatron.ltd.plan.table import format_rate, stage_table
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from megatron.ltd.schedules.kept_tokens import KeptTokensSchedule
from megatron.ltd.schedules.step_plan import StepPlan
from tests.unit.plan.test_run_plan import GPT3_1_3B, SHAPE, middle_layers


def test_the_table_of_a_short_run() -> None:
    plan = plan_run(SHAPE, BatchSchedule(8, None), middle_layers(KeptTokensSchedule(32, 64, 10, 16), 4), 30)
    lines = stage_table(plan).splitlines()
    assert [line.split("  ")[0].strip() or line.split()[0] for line in lines[:1]] == ["steps"]
    assert [line.split()[0:3] for line in lines[1:4]] == [["1", "-", "5"], ["6", "-", "10"], ["11", "-", "30"]]
    assert "100.0%" in lines[3]
    shares = [float(line.split()[-1].removesuffix("%")) for line in lines[1:4]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    # (64 + 32 + 32 + 64) * 8 * 5 layer tokens in the first five steps
    assert "7.680 K" in lines[1]
    assert lines[4].startswith("total: 30 steps, 240 samples, 15.36 K tokens, ")
    assert f"saves {1 - plan.flops(30) / plan.dense_flops(30):.1%} of dense FLOPs" in lines[4]


def test_the_table_of_a_long_run_stays_short_and_leaves_nothing_out() -> None:
    batch = BatchSchedule(512, BatchRamp(16, 16, 10_000_000))
    kept_stages = middle_layers(KeptTokensSchedule(128, 2048, 200_000, 16), 24)
    lines = stage_table(plan_run(GPT3_1_3B, batch, kept_stages, 300_000)).splitlines()
    rows = lines[1:-1]
    assert len(rows) == 12
    assert len({len(line) for line in lines[:-1]}) == 1, "columns line up"
    spans = [[int(number) for number in row.strip().split("  ")[0].split(" - ")] for row in rows]
    assert spans[0][0] == 1 and spans[-1] == [200_001, 300_000]
    assert all(after[0] == before[1] + 1 for before, after in zip(spans, spans[1:], strict=False))


def test_a_table_with_dropped_layers_shows_the_depth() -> None:
    half = StepPlan(64, (64,) * 4, (1.0, 0.75, 0.5, 0.25))
    plan = plan_run(SHAPE, BatchSchedule(8, None), lambda _: [(0, 3, StepPlan.dense(64, 4)), (3, 7, half)], 10)
    header, dense_row, dropping_row, _ = (line.split("  ") for line in stage_table(plan).splitlines())
    assert "depth" in [cell.strip() for cell in header]
    assert "4.0" in [cell.strip() for cell in dense_row] and "2.5" in [cell.strip() for cell in dropping_row]
    assert plan.layer_tokens(10) == 8 * 64 * 4 * 3 + 7 * 8 * 64 * 5 // 2


def test_each_row_shows_the_learning_rates_of_its_first_and_last_step() -> None:
    plan = plan_run(SHAPE, BatchSchedule(8, None), middle_layers(KeptTokensSchedule(32, 64, 10, 16), 4), 30)
    head, *rows, _ = stage_table(plan, rate=lambda step: step * 1e-4).splitlines()
    assert "learning rate" in head
    for row, (first, last) in zip(
        rows, [("0", "4.00e-4"), ("5.00e-4", "9.00e-4"), ("1.00e-3", "2.90e-3")], strict=True
    ):
        assert f"  {first} - {last}  " in row


@pytest.mark.parametrize(("rate", "text"), [(0.0, "0"), (2e-4, "2.00e-4"), (1.5, "1.50e0"), (9.996e-5, "1.00e-4")])
def test_a_learning_rate_is_short_and_readable(rate: float, text: str) -> None:
    assert format_rate(rate) == text


def test_a_constant_batch_size_has_no_column() -> None:
    constant = plan_run(SHAPE, BatchSchedule(8, None), middle_layers(KeptTokensSchedule(32, 64, 10, 16), 4), 30)
    growing = plan_run(
        SHAPE, BatchSchedule(8, BatchRamp(4, 4, 20)), middle_layers(KeptTokensSchedule(32, 64, 10, 16), 4), 30
    )
    assert "batch" not in stage_table(constant).splitlines()[0].split()
    assert "batch" in stage_table(growing).splitlines()[0].split()
