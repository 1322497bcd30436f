"""Fixtures that write a run's metrics.jsonl and result files of lm-eval by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support_task_results import WIKITEXT, Write, task

WriteRun = Callable[..., Path]


def train_line(iteration: int, loss: float = 5.0, seconds: float = 2.0, flops: int = 30) -> dict[str, Any]:
    """The line of step ``iteration``, with 2 samples of 8 tokens in 2 layers; a dense step takes 40 FLOPs."""
    return {
        "kind": "train",
        "iteration": iteration,
        "loss": loss,
        "lr": 1e-3,
        "kept_tokens": 4,
        "depth": 2.0,
        "num_layers": 2,
        "batch_size": 2,
        "seq_length": 8,
        "consumed_samples": 2 * iteration,
        "consumed_tokens": 16 * iteration,
        "consumed_layer_tokens": 24 * iteration,
        "step_flops": flops,
        "dense_step_flops": 40,
        "step_seconds": seconds,
    }


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """``write_run("name", line, line, ...)`` writes a run line and these lines, and returns the run's folder."""

    def write(name: str, *lines: dict[str, Any], method: str = "random-LTD") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        first = {"kind": "run", "method": method, "resumed_at": 0}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
        return folder

    return write


@pytest.fixture
def train() -> Callable[..., dict[str, Any]]:
    return train_line


@pytest.fixture
def write_results(tmp_path: Path) -> Write:
    """``write("run", piqa=task(acc=(0.5, 0.05)))`` writes a result file like lm-eval 0.4.13's, returns its folder."""

    def put(
        name: str, stamp: str = "2026-01-31T12-00-00.5", version: str = "0.4.13", iteration: int = 600, **tasks: Any
    ) -> Path:
        content: dict[str, Any] = {
            "results": {"some_group": {"alias": "some_group", "acc,none": 0.99}},
            "group_subtasks": {"some_group": list(tasks)},
            "versions": {name: one["version"] for name, one in tasks.items()},
            "n-shot": {name: one["n-shot"] for name, one in tasks.items()},
            "higher_is_better": {},
            "n-samples": {
                name: {"original": one["original"], "effective": one["effective"]} for name, one in tasks.items()
            },
            "config": {"model": "megatron-ltd", "model_args": {"pretrained": name}, "iteration": iteration},
            "lm_eval_version": version,
        }
        for task_name, one in tasks.items():
            values = {"name": task_name, "alias": task_name, "sample_len": one["effective"]}
            for metric, (value, error) in one["scores"].items():
                values |= {f"{metric},none": value, f"{metric}_stderr,none": error}
            content["results"][task_name] = values
            content["higher_is_better"][task_name] = {m: not m.endswith("perplexity") for m in one["scores"]}
        folder = tmp_path / name / "model__x"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"results_{stamp}.json").write_text(json.dumps(content))
        return tmp_path / name

    return put


@pytest.fixture
def two(write_results: Write) -> list[Path]:
    dense = write_results(
        "dense",
        piqa=task(acc=(0.6, 0.01), acc_norm=(0.7, 0.03)),
        boolq=task(acc=(0.5, 0.04)),
        wikitext=task(62, **WIKITEXT),
    )
    dropped = write_results(
        "random-LTD",
        piqa=task(acc=(0.8, 0.01), acc_norm=(0.72, 0.06)),
        boolq=task(acc=(0.58, 0.08)),
        wikitext=task(62, word_perplexity=(19.5, "N/A"), bits_per_byte=(0.8, "N/A")),
    )
    return [dense, dropped]
