"""Pages of unusual logs: ones with few fields, non-finite values, or hostile text."""

from __future__ import annotations

import json

from megatron.ltd.reports.metrics import read_history
from megatron.ltd.reports.page.build import report
from tests.unit.reports.page.pages import Page


def test_a_minimal_log_has_a_page(write_run, train) -> None:
    """The log has no run line, and its steps have only the fields that every version has written."""
    folder = write_run("run")
    fields = (
        "kind iteration loss consumed_tokens consumed_layer_tokens step_flops dense_step_flops step_seconds".split()
    )
    lines = [{name: train(step)[name] for name in fields} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(report(read_history(folder, "bare"), None, [], ("steps", "layer-tokens")))
    for shown in ("bare", "no run line", "steps 2 tokens 32", "evaluations none"):
        assert shown in page.text.replace("samples - ", "")
    assert "Flags" not in page.text and "1 - 2 - - 32 48" in page.text


def test_a_non_finite_evaluation_is_shown(write_run, train) -> None:
    lines = [train(1), {"kind": "validation", "iteration": 1, "loss": None, "perplexity": None, "f1": 0.5}]
    page = Page(report(read_history(write_run("run", *lines), "run"), None, [], ("steps",)))
    assert "loss, held-out, step 1 not finite" in page.text and "f1, held-out, step 1 0.5000" in page.text


def test_text_of_a_log_is_escaped_on_the_page(write_run, train) -> None:
    """The figure also holds names of scores and metrics: as text, in its label and in its comments."""
    hostile = """<script>x()</script>'&amp; </style></title> {{ 7 * 7 }} --><!-- "><b> $\\frac$"""
    config = {"model": {hostile: hostile}, hostile: {hostile: [hostile]}, "methods": {hostile: {hostile: 1}}}
    start = {
        "kind": "run", "resumed_at": 0, "config": config, "versions": {hostile: hostile}, "data": {hostile: [hostile]},
        "method": hostile, "time": hostile,
    }  # fmt: skip
    lines = [start, train(1), {"kind": "scores", "iteration": 1, hostile: 0.5}]
    lines.append({"kind": "validation", "iteration": 1, "loss": 1.0, hostile: 0.5})
    history = read_history(write_run("run", *lines), hostile)
    content = report(history, None, [(hostile,) * 7], ("steps",))
    page = Page(content)
    assert content.startswith("<!DOCTYPE html>\n<html lang=")
    assert "default-src 'none'; style-src 'unsafe-inline'" in content
    assert not {"script", "b"} & set(page.elements) and page.loads == page.handlers == []
    assert page.text.count(hostile) >= 12 and "<script" not in content
