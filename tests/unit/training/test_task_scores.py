"""Scoring tasks during training: which flags fit together, and when the scorer is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.parallel.mesh import initialize
from megatron.ltd.training.build import build_run
from megatron.ltd.training.loop import train
from megatron.ltd.training.task_scores import TaskScoresConfig
from tests.support import small_dataset
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


def test_a_run_calls_its_scorer_and_logs_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scorer runs in evaluation mode on the weights after the step, and leaves the training losses unchanged."""
    data = small_dataset(tmp_path)
    command = f"--train-data-path {data} --tokenizer-type ByteTokenizer --num-layers 2 --hidden-size 16 --lr 1e-3"
    command += " --num-attention-heads 2 --seq-length 16 --train-iters 5 --eval-iters 0 --device cpu"
    tasks = ["--eval-tasks", "boolq", "--eval-tasks-interval", "2"]
    losses = []
    for name, more in (("scored", tasks), ("plain", [])):
        config = parse_run_config([*command.split(), "--log-dir", str(tmp_path / name), *more])
        with initialize(config.parallel) as mesh:
            run = build_run(config, mesh)

            def score(run: Any = run) -> dict[str, float]:
                assert not any(chunk.training for chunk in run.state.chunks)
                return {"boolq/acc": float(run.progress.iteration), "boolq/acc_stderr": 0.5, "copa/acc": 0.25}

            train(run, score if more else None)
            run.log.close()
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
        scores = [line for line in lines if line["kind"] == "scores"]
        assert [(line["iteration"], line["boolq/acc"]) for line in scores] == (
            [(2, 2.0), (4, 4.0), (5, 5.0)] if more else []
        )
    assert losses[0] == losses[1]
    said = capsys.readouterr().out
    assert "step 4 | boolq acc 4.0000, acc_stderr 0.5000\nstep 4 | copa acc 0.2500\n" in said
