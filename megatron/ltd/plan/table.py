"""A run as a table of stages: of its plan (``--plan`` and the header of a run), and of its log (the report of a run).

    steps | batch | kept tokens | depth | tokens | layer tokens | learning rate | FLOPs | of dense | share

A table has at most ``MOST_ROWS`` rows. In a run with more stages, neighbouring stages share a row, which shows sums
and both ends of what changes within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from megatron.ltd.format import format_count, format_flops, text_table
from megatron.ltd.plan.run_plan import RunPlan

LearningRate = Callable[[int], float]
"""The learning rate of the update at the end of a 0-based step."""

MOST_ROWS = 12
STAGE_FIELDS = (
    "first_step", "num_steps", "global_batch_samples", "tokens", "layer_tokens", "flops", "dense_flops",
    "first_lr", "last_lr",
)  # fmt: skip
"""The fields of ``StageFigures`` that a plan's file holds as they are."""


@dataclass(frozen=True)
class StageFigures:
    """Neighbouring steps, planned or logged, that are alike. Values that are not known are NaN."""

    first_step: int
    """0-based."""
    num_steps: int
    global_batch_samples: float
    kept_tokens: float
    """Of the layer that keeps fewest."""
    depth: float
    """Mean number of layers that run."""
    first_lr: float
    last_lr: float
    tokens: float
    layer_tokens: float
    flops: int
    dense_flops: int
    step_seconds: tuple[float, ...] = ()
    """Of every step, if they are logged."""


def _shared_rows(stages: Sequence[StageFigures]) -> list[Sequence[StageFigures]]:
    """At most ``MOST_ROWS`` rows: the last stage alone, and equal shares of the stages before it."""
    growing, last = stages[:-1], stages[-1:]
    num_rows = min(len(growing), MOST_ROWS - 1)
    bounds = [len(growing) * row // num_rows for row in range(num_rows + 1)] if num_rows else []
    return [*(growing[first:end] for first, end in zip(bounds, bounds[1:], strict=False)), last]


def stage_rows(stages: Sequence[StageFigures], num_layers: float) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table; steps count from 1.

    ``of dense`` compares the FLOPs of a row with those of the dense model in the same steps, and ``share`` with those
    of all rows. ``depth`` is there if layers are dropped; ``learning rate`` and ``s a step``, the median, if known.
    """
    all_flops = sum(stage.flops for stage in stages)
    rows = [_row(group, all_flops) for group in _shared_rows(stages)]
    hidden = {
        "depth": not any(stage.depth < num_layers for stage in stages),
        "learning rate": all(math.isnan(rate) for stage in stages for rate in (stage.first_lr, stage.last_lr)),
        "s a step": not any(stage.step_seconds for stage in stages),
    }
    header = [name for name in rows[0] if not hidden.get(name)]
    return header, [[row[name] for name in header] for row in rows]


def _row(group: Sequence[StageFigures], all_flops: int) -> dict[str, str]:
    first, last = group[0], group[-1]
    flops = sum(stage.flops for stage in group)
    seconds = [seconds for stage in group for seconds in stage.step_seconds]
    return {
        "steps": _span(first.first_step + 1, last.first_step + last.num_steps, str),
        "batch": _span(first.global_batch_samples, last.global_batch_samples, "{:.0f}".format),
        "kept tokens": _span(first.kept_tokens, last.kept_tokens, "{:.0f}".format),
        "depth": _span(first.depth, last.depth, "{:.1f}".format),
        "tokens": _known(sum(stage.tokens for stage in group), format_count),
        "layer tokens": _known(sum(stage.layer_tokens for stage in group), format_count),
        "learning rate": _span(first.first_lr, last.last_lr, format_rate),
        "FLOPs": format_flops(flops),
        "of dense": f"{flops / sum(stage.dense_flops for stage in group):.1%}",
        "share": f"{flops / all_flops:.1%}",
        "s a step": f"{median(seconds):.3g}" if seconds else "-",
    }


def planned_stages(plan: RunPlan, rate: LearningRate | None = None) -> list[StageFigures]:
    """The stages of a plan; ``rate`` is the learning rate, if it is known."""
    return [
        StageFigures(
            stage.first_step,
            stage.num_steps,
            stage.global_batch_samples,
            stage.plan.min_kept_tokens,
            stage.plan.mean_depth,
            math.nan if rate is None else rate(stage.first_step),
            math.nan if rate is None else rate(stage.end_step - 1),
            tokens=plan.tokens(stage.end_step) - plan.tokens(stage.first_step),
            layer_tokens=plan.layer_tokens(stage.end_step) - plan.layer_tokens(stage.first_step),
            flops=plan.flops(stage.end_step) - plan.flops(stage.first_step),
            dense_flops=plan.dense_flops(stage.end_step) - plan.dense_flops(stage.first_step),
        )
        for stage in plan.stages
    ]


def stage_table(plan: RunPlan, rate: LearningRate | None = None) -> str:
    """The stages of a plan as plain text, and a line of totals; ``batch`` is left out if it is the same in all."""
    header, rows = stage_rows(planned_stages(plan, rate), plan.shape.num_layers)
    if len({stage.global_batch_samples for stage in plan.stages}) == 1:
        place = header.index("batch")
        header, *rows = ([*row[:place], *row[place + 1 :]] for row in (header, *rows))
    steps = plan.num_steps
    total = (
        f"total: {steps} steps, {format_count(plan.samples(steps))} samples, "
        f"{format_count(plan.tokens(steps))} tokens, {format_count(plan.layer_tokens(steps))} layer tokens, "
        f"{format_flops(plan.flops(steps))}: "
        f"saves {plan.saving(steps):.1%} of dense FLOPs"
    )
    return "\n".join([text_table(rows, header, num_labels=0), total])


def format_rate(rate: float) -> str:
    """A learning rate: ``"2.00e-4"``."""
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{digits}e{int(exponent)}" if rate else "0"


def _known(value: float, form: Callable[[float], str]) -> str:
    return "-" if math.isnan(value) else form(value)


def _span(first: float, last: float, form: Callable[[float], str]) -> str:
    """Both ends, or one if they read the same."""
    return " - ".join(dict.fromkeys(_known(end, form) for end in (first, last)))
