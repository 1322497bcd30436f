"""The report of a run: its log, plan and scores, filled into ``page.html.jinja``.

The template escapes every value (autoescape); the drawing alone enters as it is, made of escaped text by matplotlib.
The page loads nothing and runs nothing: its content policy forbids scripts and everything from outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron.ltd.flags import shown
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.plan.table import StageFigures, stage_rows
from megatron.ltd.reports.figures.draw import draw, rendered
from megatron.ltd.reports.figures.panels import panels_of, score_names
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.notes import notes
from megatron.ltd.reports.page.plan_file import PlanFile
from megatron.ltd.reports.page.settings import command, settings
from megatron.ltd.reports.summary import summarize
from megatron.ltd.reports.task_results import read_results
from megatron.ltd.words import method_title, name_of

Row = tuple[str, ...]
_FILTERS = {
    "count": format_count, "flops": format_flops, "seconds": format_seconds, "shown": shown, "method": method_title,
    "whole": "{:,}".format,
}  # fmt: skip


def report(history: RunHistory, plan: PlanFile | None, score_rows: Sequence[Row], axis_names: Sequence[str]) -> str:
    """The whole page. ``score_rows`` are ``read_scores``'."""
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    environment.filters |= _FILTERS
    panels, about = panels_of([history]), history.about
    config, versions, data = (about.get(part, {}) for part in ("config", "versions", "data"))
    svg = rendered(draw([history], panels, axis_names, legend=False), ".svg", Format=None, Type=None, Creator=None)
    return environment.get_template("page.html.jinja").render(
        history=history,
        about=about,
        last=history.steps[-1],
        model=config.get("model", {}),
        summary=summarize(history),
        notes=[note for note in (*notes(history), plan and plan.left_by(history)) if note],
        plan=plan,
        plan_stages=plan and stage_rows(plan.stages, plan.num_layers),
        curves=Markup(svg[svg.index(b"<svg") :].decode()),
        curves_label=f"{', '.join(panel.title for panel in panels)} over {', '.join(axis_names)}",
        stages=stage_rows(logged_stages(history), history.steps[-1].get("num_layers", 0)),
        scores=score_rows,
        scores_during_training=list(curve_rows(history)),
        command=command(config),
        settings=settings(config),
        provenance=[*versions.items(), *((f"data of {name_of(name)}", mark) for name, mark in data.items())],
    )


def logged_stages(history: RunHistory) -> list[StageFigures]:
    """The stages of a run by its log: neighbouring steps with one batch size and one number of kept tokens.

    What the first step of a log that starts later than the run consumed is not known.
    """
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


def read_scores(paths: Sequence[str]) -> list[Row]:
    """Task, metric, score, standard error, shots, examples and file of lm-eval's results.

    Of a task in several paths the last counts. Raises ``UserError``.
    """
    rows: dict[str, list[Row]] = {}
    for results in (read_results(Path(path), flag="--scores") for path in paths):
        for task, result in results.tasks.items():
            rows[task] = []
            by_filter = {key.partition(",")[0] for key in result.scores if "," in key}
            for key, score in result.scores.items():
                if key not in by_filter:
                    metric, _, name = key.partition(",")
                    title = metric if name in ("", "none") else f"{metric} ({name})"
                    values = (score.value, score.standard_error, result.num_fewshot, result.num_samples)
                    rows[task].append((task, title, *map(_text, values), results.older.get(task, results.path.name)))
    return [row for task_rows in rows.values() for row in task_rows]


def curve_rows(history: RunHistory) -> Iterator[Row]:
    """Name, number of evaluations, first and last value, and its step of each score that the run logged."""
    for name in score_names([history]):
        lines = [line for line in history.scores if line.get(name) is not None]
        if lines:
            first, last = lines[0], lines[-1]
            yield name, f"{len(lines)}", _text(first[name]), _text(last[name]), f"{last['iteration']:,}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return format(value, ".4f" if abs(value) < 100 else ".2f" if abs(value) < 1e6 else ".4g")
    return str(value) if isinstance(value, int) else "-"
