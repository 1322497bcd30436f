"""The report of a run, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.ltd.flags import shown
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.reports.figures.draw import draw, rendered
from megatron.ltd.reports.figures.panels import panels_of
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page import scores
from megatron.ltd.reports.page.markup import (
    Markup,
    element,
    figures,
    folded,
    inline_svg,
    joined,
    page,
    section,
    table,
    text,
)
from megatron.ltd.reports.page.notes import notes
from megatron.ltd.reports.page.plan_file import HEADER, PlanFile
from megatron.ltd.reports.page.settings import Setting, settings
from megatron.ltd.reports.page.stages import stage_rows
from megatron.ltd.reports.summary import summarize
from megatron.ltd.words import method_title, name_of

_ENDS_ARE_SHOWN = element("p", text("Of several stages in a row both ends are shown."), of_class="faint")


def report(
    history: RunHistory, plan: PlanFile | None, score_rows: Sequence[scores.Row], axis_names: Sequence[str]
) -> str:
    """The whole page. ``score_rows`` are ``scores.read_scores``'."""
    parts = [
        _head(history, plan), _totals(history), _plan(plan), _curves(history, axis_names), _stages(history),
        _scores(history, score_rows), _settings(history), _provenance(history),
    ]  # fmt: skip
    return page(history.name, [part for part in parts if part])


def _head(history: RunHistory, plan: PlanFile | None) -> Markup:
    about = history.about
    model = about.get("config", {}).get("model", {})
    facts = [
        method_title(about["method"]) if "method" in about else None,
        f"{model['num_layers']} layers, hidden {model['hidden_size']}" if "hidden_size" in model else None,
        _dates(history),
    ]
    line = element("p", text(" · ".join(fact for fact in facts if fact)), of_class="faint")
    left = plan.left_by(history) if plan is not None else None
    warnings = [element("li", text(note)) for note in (*notes(history), *([left] if left else []))]
    listed = element("ul", *warnings, of_class="notes") if warnings else Markup("")
    return joined([element("h1", text(history.name)), line, listed])


def _dates(history: RunHistory) -> str | None:
    first = history.starts[0].get("time") if history.starts else None
    return f"started {first}" if first else None


def _totals(history: RunHistory) -> Markup:
    figures_of_run = summarize(history)
    last, layers = history.steps[-1], history.steps[-1].get("num_layers")
    num_steps = history.about.get("num_steps")
    pairs = [
        ("steps", f"{figures_of_run.num_steps:,}" + (f" of {num_steps:,}" if num_steps else "")),
        ("samples", format_count(last["consumed_samples"]) if "consumed_samples" in last else "-"),
        ("tokens", format_count(figures_of_run.tokens)),
        ("layer tokens", format_count(figures_of_run.layer_tokens)),
        ("layer tokens / layers", format_count(figures_of_run.layer_tokens / layers) if layers else "-"),
        ("FLOPs", format_flops(figures_of_run.flops)),
        ("FLOPs of the dense model", format_flops(figures_of_run.dense_flops)),
        ("FLOPs saved", f"{figures_of_run.theoretical_saving:.1%}"),
        ("time in training steps", format_seconds(figures_of_run.seconds)),
        ("tokens a second", f"{figures_of_run.tokens_per_second:,.0f}"),
        *_last_evaluation(history),
    ]
    if figures_of_run.lowest_perplexity not in (None, figures_of_run.perplexity):
        pairs.append(("lowest perplexity", f"{figures_of_run.lowest_perplexity:.3f}"))
    return section("Totals", figures(pairs))


def _last_evaluation(history: RunHistory) -> list[tuple[str, str]]:
    if not history.validations:
        return [("evaluations", "none")]
    last = history.validations[-1]
    at = f", held-out, step {last['iteration']:,}"
    return [
        (f"{name.replace('_', ' ')}{at}", "not finite" if value is None else f"{value:.4f}")
        for name, value in last.items()
        if name not in ("kind", "iteration") and (value is None or isinstance(value, (int, float)))
    ]


def _curves(history: RunHistory, axis_names: Sequence[str]) -> Markup:
    panels = panels_of([history])
    figure = draw([history], panels, axis_names, legend=False)
    label = f"{', '.join(panel.title for panel in panels)} over {', '.join(axis_names)}"
    return section("Curves", inline_svg(rendered(figure, ".svg", transparent=True), label))


def _plan(plan: PlanFile | None) -> Markup:
    if plan is None:
        return Markup("")
    return section("Plan", figures(plan.figures()), table(HEADER, plan.rows()), _ENDS_ARE_SHOWN)


def _stages(history: RunHistory) -> Markup:
    return section("Stages, as logged", table(*stage_rows(history)), _ENDS_ARE_SHOWN)


def _scores(history: RunHistory, score_rows: Sequence[scores.Row]) -> Markup:
    parts = []
    if score_rows:
        parts.append(table(scores.HEADER, score_rows))
    during = scores.curve_rows(history)
    if during:
        parts += [element("p", text("While it trained:")), table(scores.CURVE_HEADER, during)]
    return section("Scores", *parts) if parts else Markup("")


def _settings(history: RunHistory) -> Markup:
    found = settings(history.about.get("config", {}))
    changed = [setting for setting in found if setting.is_changed]
    usual = [setting for setting in found if not setting.is_changed]
    if not found:
        return Markup("")
    rows = [(setting.flag, setting.spelled(setting.value), _default(setting)) for setting in changed]
    others = table(("flag", "value"), [(setting.flag, setting.spelled(setting.value)) for setting in usual], words=True)
    return section(
        "Flags", table(("flag", "value", "default"), rows, words=True), folded(f"{len(usual)} at their default", others)
    )


def _default(setting: Setting) -> str:
    return setting.spelled(setting.default) if setting.is_known else "not a flag of this version"


def _provenance(history: RunHistory) -> Markup:
    rows = [(name, shown(value)) for name, value in _pairs(history.about.get("versions"))]
    rows += [(f"data of {name_of(name)}", shown(value)) for name, value in _pairs(history.about.get("data"))]
    return section("Versions and data", table(("", ""), rows, words=True)) if rows else Markup("")


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []
