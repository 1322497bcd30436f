"""The table of a run's stages, as the header and ``--plan`` print it."""

from __future__ import annotations

import re

import pytest

from megatron.ltd.plan.run_plan import plan_run
from megatron.ltd.plan.table import format_rate, stage_table
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from megatron.ltd.schedules.kept_tokens import KeptTokensSchedule
from megatron.ltd.schedules.step_plan import StepPlan
from tests.unit.plan.test_run_plan import GPT3_1_3B, SHAPE, middle_layers


def test_the_table_of_a_short_run() -> None:
    """Each row shows the learning rates of its first and last step. A batch size that does not change has no column."""
    plan = plan_run(SHAPE, BatchSchedule(8, None), middle_layers(KeptTokensSchedule(32, 64, 10, 16), 4), 30)
    header, *rows, total = stage_table(plan, rate=lambda step: step * 1e-4).splitlines()
    assert re.split(r" {2,}", header.strip()) == [
        "steps", "kept tokens", "tokens", "layer tokens", "learning rate", "FLOPs", "of dense", "share",
    ]  # fmt: skip
    cells = [re.split(r" {2,}", row.strip()) for row in rows]
    assert [[row[0], row[1], row[4]] for row in cells] == [
        ["1 - 5", "32", "0 - 4.00e-4"],
        ["6 - 10", "48", "5.00e-4 - 9.00e-4"],
        ["11 - 30", "64", "1.00e-3 - 2.90e-3"],
    ]
    assert cells[0][3] == "7.680 K"  # (64 + 32 + 32 + 64) * 8 * 5 layer tokens in the first five steps
    assert cells[2][6] == "100.0%"
    assert sum(float(row[7].removesuffix("%")) for row in cells) == pytest.approx(100, abs=0.2)
    assert total.startswith("total: 30 steps, 240 samples, 15.36 K tokens, ")
    assert f"saves {1 - plan.flops(30) / plan.dense_flops(30):.1%} of dense FLOPs" in total


def test_the_table_of_a_long_run_stays_short_and_leaves_nothing_out() -> None:
    batch = BatchSchedule(512, BatchRamp(16, 16, 10_000_000))
    kept_stages = middle_layers(KeptTokensSchedule(128, 2048, 200_000, 16), 24)
    lines = stage_table(plan_run(GPT3_1_3B, batch, kept_stages, 300_000)).splitlines()
    rows = lines[1:-1]
    assert len(rows) == 12 and "batch" in lines[0].split()
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


@pytest.mark.parametrize(("rate", "text"), [(0.0, "0"), (2e-4, "2.00e-4"), (1.5, "1.50e0"), (9.996e-5, "1.00e-4")])
def test_a_learning_rate_is_short_and_readable(rate: float, text: str) -> None:
    assert format_rate(rate) == text
