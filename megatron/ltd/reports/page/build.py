"""The report of a run: what its page shows, filled into ``page.html.jinja``.

The template escapes every value (autoescape); the drawing alone enters as it is, made of escaped text by matplotlib.
The page loads nothing and runs nothing: its content policy forbids scripts and everything from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from megatron.ltd.flags import shown
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.plan.table import stage_rows
from megatron.ltd.reports.figures.draw import COLOURS, INK, draw, rendered
from megatron.ltd.reports.figures.panels import panels_of
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page import scores
from megatron.ltd.reports.page.notes import notes
from megatron.ltd.reports.page.plan_file import PlanFile
from megatron.ltd.reports.page.settings import command, settings
from megatron.ltd.reports.page.stages import logged_stages
from megatron.ltd.reports.summary import summarize
from megatron.ltd.words import method_title, name_of

_DARK_COLOURS = ("#58A9DE", "#F08A3C", "#35C495", "#E3A3C4", "#F2BC4B", "#8CCBF0")


def report(
    history: RunHistory, plan: PlanFile | None, score_rows: Sequence[scores.Row], axis_names: Sequence[str]
) -> str:
    """The whole page. ``score_rows`` are ``scores.read_scores``'."""
    environment = Environment(
        loader=PackageLoader("megatron.ltd.reports.page", "."), autoescape=True, undefined=StrictUndefined
    )
    found = settings(history.about.get("config", {}))
    left = plan.left_by(history) if plan is not None else None
    return environment.get_template("page.html.jinja").render(
        name=history.name,
        facts=_facts(history),
        notes=[*notes(history), *([left] if left else [])],
        totals=list(_totals(history)),
        plan=plan,
        plan_stages=plan and stage_rows(plan.stages, plan.num_layers),
        curves=_curves(history, axis_names),
        stages=stage_rows(logged_stages(history), history.steps[-1].get("num_layers", 0)),
        scores=score_rows,
        scores_header=scores.HEADER,
        scores_during_training=scores.curve_rows(history),
        curve_header=scores.CURVE_HEADER,
        settings=found,
        command=command(history.about.get("config", {})) if found else "",
        changed=[
            (one.flag, one.spelled(one.value), one.spelled(one.default) if one.is_known else "unknown to this version")
            for one in found
            if one.is_changed
        ],
        unchanged=[(one.flag, one.spelled(one.value)) for one in found if not one.is_changed],
        provenance=list(_provenance(history)),
        ink=INK,
        light_colours=COLOURS,
        dark_colours=_DARK_COLOURS,
    )


def _facts(history: RunHistory) -> list[str | None]:
    about = history.about
    model = about.get("config", {}).get("model", {})
    started = history.starts[0].get("time") if history.starts else None
    return [
        method_title(about["method"]) if "method" in about else None,
        f"{model['num_layers']} layers, hidden {model['hidden_size']}" if "hidden_size" in model else None,
        f"started {started}" if started else None,
    ]


def _totals(history: RunHistory) -> Iterator[tuple[str, str]]:
    summary, last, num_steps = summarize(history), history.steps[-1], history.about.get("num_steps")
    layers = last.get("num_layers")
    yield "steps", f"{summary.num_steps:,}" + (f" of {num_steps:,}" if num_steps else "")
    yield "samples", format_count(last["consumed_samples"]) if "consumed_samples" in last else "-"
    yield "tokens", format_count(summary.tokens)
    yield "layer tokens", format_count(summary.layer_tokens)
    yield "layer tokens / layers", format_count(summary.layer_tokens / layers) if layers else "-"
    yield "FLOPs", format_flops(summary.flops)
    yield "FLOPs of the dense model", format_flops(summary.dense_flops)
    yield "FLOPs saved", f"{summary.theoretical_saving:.1%}"
    yield "time in training steps", format_seconds(summary.seconds)
    yield "tokens a second", f"{summary.tokens_per_second:,.0f}"
    if not history.validations:
        yield "evaluations", "none"
        return
    validation = history.validations[-1]
    for name, value in validation.items():
        if name not in ("kind", "iteration") and (value is None or isinstance(value, (int, float))):
            label = f"{name.replace('_', ' ')}, held-out, step {validation['iteration']:,}"
            yield label, "not finite" if value is None else f"{value:.4f}"
    if summary.lowest_perplexity not in (None, summary.perplexity):
        yield "lowest perplexity", f"{summary.lowest_perplexity:.3f}"


def _curves(history: RunHistory, axis_names: Sequence[str]) -> Markup:
    """matplotlib's SVG as part of the page, in the colours of the page."""
    panels = panels_of([history])
    label = f"{', '.join(panel.title for panel in panels)} over {', '.join(axis_names)}"
    file = rendered(draw([history], panels, axis_names, legend=False), ".svg", transparent=True).decode("utf-8")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", file[file.index("<svg") :], flags=re.DOTALL)
    drawing = drawing.replace(INK.lower(), "currentColor")
    for number, colour in enumerate(COLOURS):
        drawing = drawing.replace(colour.lower(), f"var(--run-{number})")
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def _provenance(history: RunHistory) -> Iterator[tuple[str, str]]:
    for part, title in (("versions", "{}"), ("data", "data of {}")):
        values: Any = history.about.get(part)
        for name, value in values.items() if isinstance(values, dict) else ():
            yield title.format(name if part == "versions" else name_of(name)), shown(value)
