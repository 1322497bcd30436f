"""The stages of a run as its log shows them: neighbouring steps with one batch and one number of kept tokens.

The log tells what ran, not what was planned. It needs neither model nor data, and it has the seconds of every step.
"""

from __future__ import annotations

import numpy as np

from megatron.ltd.plan.table import StageFigures
from megatron.ltd.reports.figures.axes import column
from megatron.ltd.reports.metrics import RunHistory


def logged_stages(history: RunHistory) -> list[StageFigures]:
    """Every stage. What the first step of a log that starts later than the run consumed is not known."""
    batch, kept_tokens, depth, lr, seconds = (
        column(history, name) for name in ("batch_size", "kept_tokens", "depth", "lr", "step_seconds")
    )
    before = 0.0 if history.iterations[0] == 1 else np.nan
    tokens, layer_tokens = (
        np.diff(column(history, f"consumed_{name}"), prepend=before) for name in ("tokens", "layer_tokens")
    )
    changes = np.zeros(len(tokens), dtype=bool)
    for values in (np.nan_to_num(batch, nan=-1.0), np.nan_to_num(kept_tokens, nan=-1.0)):
        changes[1:] |= values[1:] != values[:-1]

    def figures(first: int, end: int) -> StageFigures:
        """Of the logged steps ``first`` to ``end`` - 1."""
        steps = history.steps[first:end]
        return StageFigures(
            first_step=history.iterations[first] - 1,
            num_steps=history.iterations[end - 1] - history.iterations[first] + 1,
            global_batch_samples=batch[first],
            kept_tokens=kept_tokens[first],
            depth=depth[first:end].mean(),
            first_lr=lr[first],
            last_lr=lr[end - 1],
            tokens=tokens[first:end].sum(),
            layer_tokens=layer_tokens[first:end].sum(),
            flops=sum(step["step_flops"] for step in steps),
            dense_flops=sum(step["dense_step_flops"] for step in steps),
            step_seconds=tuple(seconds[first:end]),
        )

    bounds = [0, *np.flatnonzero(changes).tolist(), len(tokens)]
    return [figures(first, end) for first, end in zip(bounds, bounds[1:], strict=False)]
