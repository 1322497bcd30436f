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
from megatron.ltd.plan.run_plan import RunPlan, Stage

LearningRate = Callable[[int], float]
"""The learning rate of the update at the end of a 0-based step."""

MOST_ROWS = 12


@dataclass(frozen=True)
class StageFigures:
    """Neighbouring steps, planned or logged. Values that are not known are NaN.

    Pairs hold the values of the first and of the last step; steps count from 1.
    """

    steps: tuple[int, int]
    batch: tuple[float, float]
    kept_tokens: tuple[float, float]
    """Of the layer that keeps fewest."""
    depth: tuple[float, float]
    """Mean number of layers that run."""
    learning_rate: tuple[float, float]
    tokens: float
    layer_tokens: float
    flops: int
    dense_flops: int
    step_seconds: tuple[float, ...] = ()
    """Of every step, where they are logged."""

    @classmethod
    def joined(cls, stages: Sequence[StageFigures]) -> StageFigures:
        """Neighbouring stages as one."""
        first, last = stages[0], stages[-1]
        return cls(
            steps=(first.steps[0], last.steps[1]),
            batch=(first.batch[0], last.batch[1]),
            kept_tokens=(first.kept_tokens[0], last.kept_tokens[1]),
            depth=(first.depth[0], last.depth[1]),
            learning_rate=(first.learning_rate[0], last.learning_rate[1]),
            tokens=sum(stage.tokens for stage in stages),
            layer_tokens=sum(stage.layer_tokens for stage in stages),
            flops=sum(stage.flops for stage in stages),
            dense_flops=sum(stage.dense_flops for stage in stages),
            step_seconds=tuple(seconds for stage in stages for seconds in stage.step_seconds),
        )


def shared_rows(stages: Sequence[StageFigures]) -> list[StageFigures]:
    """At most ``MOST_ROWS`` rows: the last stage alone, and equal shares of the stages before it."""
    growing, last = stages[:-1], stages[-1:]
    num_rows = min(len(growing), MOST_ROWS - 1)
    bounds = [len(growing) * row // num_rows for row in range(num_rows + 1)] if num_rows else []
    groups = [growing[first:end] for first, end in zip(bounds, bounds[1:], strict=False)]
    return [StageFigures.joined(group) for group in (*groups, last)]


def stage_rows(stages: Sequence[StageFigures], num_layers: float) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table.

    ``of dense`` compares the FLOPs of a row with those of the dense model in the same steps, and ``share`` with those
    of all rows. ``depth`` is there if layers are dropped; ``learning rate`` and ``s a step``, the median, if known.
    """
    all_flops = sum(stage.flops for stage in stages)
    rows = [
        {
            "steps": _span(stage.steps, str),
            "batch": _span(stage.batch, "{:.0f}".format),
            "kept tokens": _span(stage.kept_tokens, "{:.0f}".format),
            "depth": _span(stage.depth, "{:.1f}".format),
            "tokens": _known(stage.tokens, format_count),
            "layer tokens": _known(stage.layer_tokens, format_count),
            "learning rate": _span(stage.learning_rate, format_rate),
            "FLOPs": format_flops(stage.flops),
            "of dense": f"{stage.flops / stage.dense_flops:.1%}",
            "share": f"{stage.flops / all_flops:.1%}",
            "s a step": f"{median(stage.step_seconds):.3g}" if stage.step_seconds else "-",
        }
        for stage in shared_rows(stages)
    ]
    hidden = {
        "depth": not any(min(stage.depth) < num_layers for stage in stages),
        "learning rate": all(math.isnan(rate) for stage in stages for rate in stage.learning_rate),
        "s a step": not any(stage.step_seconds for stage in stages),
    }
    header = [name for name in rows[0] if not hidden.get(name)]
    return header, [[row[name] for name in header] for row in rows]


def planned_stages(plan: RunPlan, rate: LearningRate | None = None) -> list[StageFigures]:
    """The stages of a plan; ``rate`` is the learning rate, if it is known."""

    def figures(stage: Stage) -> StageFigures:
        first, end, kept_tokens = stage.first_step, stage.end_step, stage.plan.min_kept_tokens
        return StageFigures(
            steps=(first + 1, end),
            batch=(stage.global_batch_samples,) * 2,
            kept_tokens=(kept_tokens, kept_tokens),
            depth=(stage.plan.mean_depth,) * 2,
            learning_rate=(math.nan, math.nan) if rate is None else (rate(first), rate(end - 1)),
            tokens=plan.tokens(end) - plan.tokens(first),
            layer_tokens=plan.layer_tokens(end) - plan.layer_tokens(first),
            flops=plan.flops(end) - plan.flops(first),
            dense_flops=plan.dense_flops(end) - plan.dense_flops(first),
        )

    return [figures(stage) for stage in plan.stages]


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


def _span(ends: tuple[float, float], form: Callable[[float], str]) -> str:
    """Both ends, or one if they read the same."""
    return " - ".join(dict.fromkeys(_known(end, form) for end in ends))
