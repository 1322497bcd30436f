"""Scoring tasks during training: which flags fit together, and when it is due. Runs: end_to_end/test_task_scores."""

from __future__ import annotations

from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.training.task_scores import TaskScoresConfig
from tests.support_errors import refused

TASKS: dict[str, Any] = {"eval_tasks": ("boolq",), "eval_tasks_interval": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_tasks_interval": 5}, ("--eval-tasks-interval 5", "--eval-tasks")),
        ({"eval_tasks_data": "x"}, ("--eval-tasks-data", "--eval-tasks")),
        ({"eval_tasks": ("boolq",)}, ("--eval-tasks", "--eval-tasks-interval")),
        ({**TASKS, "eval_tasks_interval": 0}, ("--eval-tasks-interval 0",)),
        ({**TASKS, "eval_tasks_limit": 0}, ("--eval-tasks-limit 0",)),
    ],
)
def test_bad_flags_are_refused(values: dict[str, Any], message: tuple[object, ...]) -> None:
    with refused(*message) as caught:
        TaskScoresConfig(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--pipeline-model-parallel-size", "--context-parallel-size"])
def test_a_layout_that_splits_the_model_or_the_samples_is_refused(flag: str) -> None:
    tasks = ["--eval-tasks", "boolq", "--eval-tasks-interval", "2"]
    with refused("--eval-tasks", f"{flag} 2", "tools/evaluate.py"):
        parse_run_config(["--train-iters", "5", "--lr", "1e-3", *tasks, flag, "2"])


def test_when_scoring_is_due() -> None:
    config = TaskScoresConfig(**TASKS)
    assert [config.is_due(step, is_last=step == 5) for step in range(1, 6)] == [False, True, False, True, True]
    assert not TaskScoresConfig().is_due(5, is_last=True)
