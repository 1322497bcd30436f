"""The report of a run: what its page shows, filled into ``page.html.jinja``.

The template escapes every value (autoescape); the drawing alone enters as it is, made of escaped text by matplotlib.
The page loads nothing and runs nothing: its content policy forbids scripts and everything from outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megatron.ltd.flags import shown
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.plan.table import stage_rows
from megatron.ltd.reports.figures.draw import draw, rendered
from megatron.ltd.reports.figures.panels import panels_of
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page import scores
from megatron.ltd.reports.page.notes import notes
from megatron.ltd.reports.page.plan_file import PlanFile
from megatron.ltd.reports.page.settings import command, settings
from megatron.ltd.reports.page.stages import logged_stages
from megatron.ltd.reports.summary import summarize
from megatron.ltd.words import method_title, name_of


def report(
    history: RunHistory, plan: PlanFile | None, score_rows: Sequence[scores.Row], axis_names: Sequence[str]
) -> str:
    """The whole page. ``score_rows`` are ``scores.read_scores``'."""
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined)
    config, panels = history.about.get("config", {}), panels_of([history])
    svg = rendered(draw([history], panels, axis_names, legend=False), ".svg", Format=None, Type=None, Creator=None)
    return environment.get_template("page.html.jinja").render(
        name=history.name,
        facts=list(_facts(history)),
        notes=[*notes(history), plan and plan.left_by(history)],
        totals=list(_totals(history)),
        plan=plan,
        plan_stages=plan and stage_rows(plan.stages, plan.num_layers),
        curves=Markup(svg[svg.index(b"<svg") :].decode()),
        curves_label=f"{', '.join(panel.title for panel in panels)} over {', '.join(axis_names)}",
        stages=stage_rows(logged_stages(history), history.steps[-1].get("num_layers", 0)),
        scores=score_rows,
        scores_during_training=scores.curve_rows(history),
        command=command(config),
        settings=settings(config),
        provenance=list(_provenance(history)),
    )


def _facts(history: RunHistory) -> Iterator[str]:
    if "method" in history.about:
        yield method_title(history.about["method"])
    model = history.about.get("config", {}).get("model", {})
    if "hidden_size" in model:
        yield f"{model['num_layers']} layers, hidden {model['hidden_size']}"
    if history.starts and history.starts[0].get("time"):
        yield f"started {history.starts[0]['time']}"


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
        if name not in ("kind", "iteration"):
            label = f"{name.replace('_', ' ')}, held-out, step {validation['iteration']:,}"
            yield label, "not finite" if value is None else f"{value:.4f}"
    if summary.lowest_perplexity not in (None, summary.perplexity):
        yield "lowest perplexity", f"{summary.lowest_perplexity:.3f}"


def _provenance(history: RunHistory) -> Iterator[tuple[str, str]]:
    for name, version in history.about.get("versions", {}).items():
        yield name, shown(version)
    for name, fingerprint in history.about.get("data", {}).items():
        yield f"data of {name_of(name)}", shown(fingerprint)
