"""The stages of a run as its log shows them: neighbouring steps with one batch and one number of kept tokens.

The log tells what ran, not what was planned. It needs neither model nor data, and it has the seconds of every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from statistics import fmean
from typing import Any

from megatron.ltd.plan.table import StageFigures
from megatron.ltd.reports.metrics import RunHistory


def logged_stages(history: RunHistory) -> list[StageFigures]:
    """Every stage. What the first step of a log that starts later than the run consumed is not known."""
    tokens = layer_tokens = 0.0 if history.iterations[0] == 1 else math.nan
    stages = []
    for _, group in groupby(history.steps, lambda step: (step.get("batch_size"), step.get("kept_tokens"))):
        steps = [*group]
        first, last = steps[0], steps[-1]
        stages.append(
            StageFigures(
                first_step=first["iteration"] - 1,
                num_steps=last["iteration"] - first["iteration"] + 1,
                global_batch_samples=_field(first, "batch_size"),
                kept_tokens=_field(first, "kept_tokens"),
                depth=fmean(_field(step, "depth") for step in steps),
                first_lr=_field(first, "lr"),
                last_lr=_field(last, "lr"),
                tokens=last["consumed_tokens"] - tokens,
                layer_tokens=last["consumed_layer_tokens"] - layer_tokens,
                flops=sum(step["step_flops"] for step in steps),
                dense_flops=sum(step["dense_step_flops"] for step in steps),
                step_seconds=tuple(step["step_seconds"] for step in steps),
            )
        )
        tokens, layer_tokens = last["consumed_tokens"], last["consumed_layer_tokens"]
    return stages


def _field(step: Mapping[str, Any], name: str) -> float:
    value = step.get(name)
    return math.nan if value is None else value
