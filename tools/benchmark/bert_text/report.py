"""From finished runs to two tables, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.estimate import Estimate, estimate
from common.runs import RunResult

from megatron.ltd.format import format_count, format_flops

from .recipe import FROM_SCRATCH, VARIANTS


def to_markdown(
    results: Sequence[RunResult],
    baseline: Mapping[str, float],
    first_losses: Mapping[str, float],
    about: Mapping[str, Any],
) -> str:
    """The page: pretraining, finetuning beside the bag of words, and how it was made."""
    by_variant: dict[str, list[RunResult]] = {}
    for result in results:
        by_variant.setdefault(result.variant, []).append(result)
    lines = ["# BERT: every method, pretrained and finetuned", "", about["reading"] or "Reading: not written yet.", ""]
    lines += _table(
        ("pretraining", "seeds", "loss, first step", "loss, held out", "masked-LM loss, held out",
         "sentence order right", "layer tokens", "FLOPs", "saved", "CPU s"),
        [_pretraining(variant, by_variant[variant], first_losses) for variant in VARIANTS if variant in by_variant],
    )  # fmt: skip
    rows = [("bag of words, logistic regression", "", f"{baseline['accuracy']:.4f}", f"{baseline['f1']:.4f}", "", "")]
    for variant in (FROM_SCRATCH, *VARIANTS):
        if runs := by_variant.get(f"finetuned {variant}"):
            rows.append(_finetuning(variant, runs, baseline))
    lines += ["", "Finetuned, dense, on labelled sentences:", ""]
    lines += _table(("pretraining", "seeds", "accuracy", "F1", "accuracy over the bag of words", "CPU s"), rows)
    return "\n".join([*lines, "", *about["facts"], ""])


def _pretraining(variant: str, runs: Sequence[RunResult], first_losses: Mapping[str, float]) -> tuple[str, ...]:
    first = runs[0]
    return (
        variant,
        f"{len(runs)}",
        f"{first_losses[variant]:.3f}",
        _text(runs, lambda run: run.validation_loss, 3),
        _text(runs, lambda run: run.measures["masked_lm_loss"], 3),
        _text(runs, lambda run: run.measures["sentence_order_accuracy"], 3),
        format_count(first.layer_tokens),
        format_flops(first.flops),
        f"{1 - first.flops / first.dense_flops:.1%}",
        _text(runs, lambda run: run.cpu_seconds, 0),
    )


def _finetuning(variant: str, runs: Sequence[RunResult], baseline: Mapping[str, float]) -> tuple[str, ...]:
    return (
        variant,
        f"{len(runs)}",
        _text(runs, lambda run: run.measures["accuracy"], 4),
        _text(runs, lambda run: run.measures["f1"], 4),
        _text(runs, lambda run: run.measures["accuracy"] - baseline["accuracy"], 4, sign=True),
        _text(runs, lambda run: run.cpu_seconds, 0),
    )


def _text(runs: Sequence[RunResult], figure: Any, digits: int, *, sign: bool = False) -> str:
    found: Estimate | None = estimate([figure(run) for run in runs])
    return "-" if found is None else found.text(digits, sign=sign)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
