"""A log of a run of four steps, and the record of a step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.training.config import LoggingConfig
from megatron.ltd.training.log import RunLog
from megatron.ltd.training.throughput import Throughput

STEP = {
    "loss": 2.0, "lr": 1e-3, "grad_norm": 0.5, "kept_tokens": 8, "batch_size": 4, "seq_length": 16,
    "depth": 6.0, "num_layers": 6, "loss_scale": 1.0, "skipped_updates": 0,
    "consumed_samples": 4, "consumed_tokens": 64, "consumed_layer_tokens": 150, "step_flops": 750,
    "dense_step_flops": 1000, "step_seconds": 0.5, "tokens_per_second": 128.0,
}  # fmt: skip


def step(iteration: int, **changes: Any) -> dict[str, Any]:
    return {"iteration": iteration, **STEP, **changes}


def log(
    folder: Path,
    *,
    enabled: bool = True,
    first_step: int = 0,
    peak: float | None = None,
    save: Path | None = None,
    **flags: Any,
) -> RunLog:
    return RunLog(
        LoggingConfig(**flags), folder, enabled, first_step, num_steps=4, flops_left=3000,
        throughput=Throughput(num_devices=2, peak_tflops=peak), settings={"training": {"lr": 1e-3}},
        save_folder=save,
    )  # fmt: skip


def logged(folder: Path, *records: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Log the records of steps; return all lines of the log."""
    run = log(folder, **options)
    for record in records:
        run.train(record)
    run.close()
    return lines(folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
