"""A run's plan file: its rows, its totals after any step, and whether the run followed it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.ltd.plan.table import stage_rows
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.plan_file import read_plan
from tests.support_errors import refused


def stage(first_step: int, num_steps: int, kept_tokens: int, flops: int) -> dict[str, object]:
    """A stage of the conftest's steps: 2 samples, 8 tokens, 2 layers; with 4 kept tokens, 30 of 40 dense FLOPs."""
    return {
        "first_step": first_step, "num_steps": num_steps, "global_batch_samples": 2, "kept_tokens": [8, kept_tokens],
        "keep_probability": [1.0, 1.0], "tokens": 16 * num_steps, "layer_tokens": 2 * (8 + kept_tokens) * num_steps,
        "flops": flops * num_steps, "dense_flops": 40 * num_steps, "first_lr": 0.0, "last_lr": 1e-3,
    }  # fmt: skip


def write(path: Path, *stages: dict, **more: object) -> Path:
    totals = {name: sum(stage[name] for stage in stages) for name in ("tokens", "layer_tokens", "flops", "dense_flops")}
    totals |= {"steps": sum(stage["num_steps"] for stage in stages), "equivalent_dense_tokens": 48, "flops_saving": 0.2}
    path.write_text(json.dumps({"stages": stages, "totals": totals, **more}))
    return path


@pytest.fixture
def plan(tmp_path: Path):
    return read_plan(write(tmp_path / "plan.json", stage(0, 3, 4, 30), stage(3, 1, 8, 40)))


def history(train, *steps: int, **changes: object) -> RunHistory:
    return RunHistory("run", {}, tuple({**train(step), **changes} for step in steps), ())


def test_rows_and_figures(plan, tmp_path: Path) -> None:
    header, rows = stage_rows(plan.stages, plan.num_layers)
    assert [dict(zip(header, row, strict=True)) for row in rows] == [
        {
            "steps": "1 - 3", "batch": "2", "kept tokens": "4", "tokens": "48", "layer tokens": "72",
            "learning rate": "0 - 1.00e-3", "FLOPs": "90 FLOP", "of dense": "75.0%", "share": "69.2%",
        },
        {
            "steps": "4", "batch": "2", "kept tokens": "8", "tokens": "16", "layer tokens": "32",
            "learning rate": "0 - 1.00e-3", "FLOPs": "40 FLOP", "of dense": "100.0%", "share": "30.8%",
        },
    ]  # fmt: skip
    assert dict(plan.figures) == {
        "steps": "4", "tokens": "64", "layer tokens": "104", "dense tokens of as many FLOPs": "48",
        "FLOPs": "130 FLOP", "FLOPs saved": "20.0%",
    }  # fmt: skip
    more = {"parameters": 1500, "memory": [{"total_bytes": 2**21}, {"total_bytes": 3 * 2**29}]}
    more["time"] = {"seconds": 3600.0, "gpu_hours": 8.0}
    figures = dict(read_plan(write(tmp_path / "more.json", *(stage(0, 1, 4, 30),) * 2, **more)).figures)
    assert [figures[name] for name in ("parameters", "memory of a GPU", "time", "GPU-hours")] == [
        "1.500 K", "1.50 GiB", "1:00:00", "8.0",
    ]  # fmt: skip


def test_a_run_that_did_not_follow_its_plan(plan, train) -> None:
    assert plan.left_by(history(train, 1, 2, 3)) is None
    assert plan.left_by(history(train, 2, 3)) is None  # the FLOPs of step 1 are unknown
    assert plan.left_by(history(train, 1, 2, consumed_tokens=33)) == (
        "The run did not follow the plan in plan.json: after step 2 the plan has 32 tokens, the log 33."
    )
    assert plan.left_by(history(train, 1, 2, step_flops=31)) == (
        "The run did not follow the plan in plan.json: after step 2 the plan has 60 flops, the log 62."
    )
    assert "has 104 layer tokens, the log 96" in str(plan.left_by(history(train, 1, 2, 3, 4)))
    assert plan.left_by(history(train, 5)) == "The plan in plan.json ends at step 4, the log at 5."


@pytest.mark.parametrize(
    "content",
    [None, "{", "[]", '{"stages": [], "totals": {}}', '{"stages": [1]}', '{"stages": [{"kept_tokens": ["a"]}]}'],
)
def test_files_that_are_not_a_plan_are_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    with refused(f"--plan {path}", "--plan-json"):
        read_plan(path)
