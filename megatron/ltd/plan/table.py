"""A run's plan as people read it: its stages in a dozen rows, and its totals, one number a line.

    steps | batch | kept tokens | depth | tokens | layer tokens | learning rate | FLOPs | of dense | share
                          neighbouring stages share a row where they are many
                                         total: ...

The header of a run prints the same table as ``--plan``. What a plan counts is ``run_plan``'s business.
"""

from __future__ import annotations

from collections.abc import Callable

from megatron.ltd.format import format_count, format_flops
from megatron.ltd.plan.run_plan import RunPlan, Stage

LearningRate = Callable[[int], float]
"""The learning rate of the update at the end of a 0-based step."""

_TABLE_ROWS = 12


def _table_groups(stages: tuple[Stage, ...]) -> list[tuple[Stage, ...]]:
    """At most ``_TABLE_ROWS`` groups of neighbouring stages: the last stage alone, equal shares of those before it."""
    growing, last = stages[:-1], stages[-1:]
    num_groups = min(len(growing), _TABLE_ROWS - 1)
    bounds = [len(growing) * group // num_groups for group in range(num_groups + 1)] if num_groups else []
    return [growing[first:end] for first, end in zip(bounds, bounds[1:], strict=False)] + ([last] if last else [])


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} - {last}"


def format_rate(rate: float) -> str:
    """A learning rate: ``"2.00e-4"``."""
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{digits}e{int(exponent)}" if rate else "0"


def _table_row(plan: RunPlan, group: tuple[Stage, ...], rate: LearningRate | None) -> dict[str, str]:
    first_step, end_step = group[0].first_step, group[-1].end_step
    kept_tokens = [stage.plan.min_kept_tokens for stage in group]
    depths = [f"{stage.plan.mean_depth:.1f}" for stage in group]
    flops = plan.flops(end_step) - plan.flops(first_step)
    rates = "" if rate is None else " - ".join(format_rate(rate(step)) for step in (first_step, end_step - 1))
    return {
        "steps": _span(first_step + 1, end_step),
        "batch": _span(group[0].global_batch_samples, group[-1].global_batch_samples),
        "kept tokens": _span(min(kept_tokens), max(kept_tokens)),
        "depth": " - ".join(dict.fromkeys((depths[0], depths[-1]))),
        "tokens": format_count(plan.tokens(end_step) - plan.tokens(first_step)),
        "layer tokens": format_count(plan.layer_tokens(end_step) - plan.layer_tokens(first_step)),
        "learning rate": rates,
        "FLOPs": format_flops(flops),
        "of dense": f"{flops / (plan.dense_flops(end_step) - plan.dense_flops(first_step)):.1%}",
        "share": f"{flops / plan.flops(plan.num_steps):.1%}",
    }


def stage_table(plan: RunPlan, rate: LearningRate | None = None) -> str:
    """The run in a dozen lines of plain text: its stages (neighbours share a row where they are many), and totals.

    Steps count from 1. ``kept tokens`` are those of the layer that keeps fewest; ``batch`` is there where it grows;
    ``depth``, the mean number of layers that run, where some are dropped; ``learning rate``, that of a row's first and
    last step, where ``rate`` is given. ``of dense`` compares a row's FLOPs with the dense model's for the same steps,
    and ``share`` with those of the whole run; the saving in the last line is over dense at equal steps.
    """
    stages = plan.stages
    unsaid = set() if rate is not None else {"learning rate"}
    if len({stage.global_batch_samples for stage in stages}) == 1:
        unsaid.add("batch")
    if all(min(stage.plan.keep_probability) == 1.0 for stage in stages):
        unsaid.add("depth")
    groups = [_table_row(plan, group, rate) for group in _table_groups(stages)]
    names = [name for name in groups[0] if name not in unsaid]
    rows = [names, *([group[name] for name in names] for group in groups)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    steps = plan.num_steps
    total = (
        f"total: {steps} steps, {format_count(plan.samples(steps))} samples, "
        f"{format_count(plan.tokens(steps))} tokens, {format_count(plan.layer_tokens(steps))} layer tokens, "
        f"{format_flops(plan.flops(steps))}: "
        f"saves {plan.saving(steps):.1%} of dense FLOPs"
    )
    return "\n".join([*lines, total])
