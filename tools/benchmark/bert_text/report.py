"""The report: finished runs as two tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from common.estimate import estimate, text
from common.runs import RunResult

from megatron.ltd.format import format_count, format_flops, markdown_table

from .recipe import FROM_SCRATCH, VARIANTS

_PRETRAINING = (
    "pretraining", "seeds", "loss, first step", "loss, held out", "masked-LM loss, held out", "sentence order right",
    "layer tokens", "FLOPs", "saved", "CPU s",
)  # fmt: skip
_FINETUNING = ("pretraining", "seeds", "accuracy", "F1", "accuracy over the bag of words", "CPU s")


def to_markdown(
    results: Sequence[RunResult],
    baseline: Mapping[str, float],
    first_losses: Mapping[str, float],
    reading: str | None,
    facts: str,
) -> str:
    """The page: tables of pretraining and of finetuning with the bag-of-words baseline, and how they were measured."""
    by_variant: dict[str, list[RunResult]] = {}
    for result in results:
        by_variant.setdefault(result.variant, []).append(result)
    pretrained = [_pretraining(variant, by_variant[variant], first_losses) for variant in VARIANTS]
    tuned = [("bag of words, logistic regression", "", f"{baseline['accuracy']:.4f}", f"{baseline['f1']:.4f}", "", "")]
    for variant in (FROM_SCRATCH, *VARIANTS):
        if runs := by_variant.get(f"finetuned {variant}"):
            tuned.append(_finetuning(variant, runs, baseline))
    lines = ["# BERT: every method, pretrained and finetuned", "", reading or "Reading: not written yet.", ""]
    lines += [markdown_table(pretrained, _PRETRAINING), "", "Finetuned, dense, on labelled sentences:", ""]
    return "\n".join([*lines, markdown_table(tuned, _FINETUNING), "", facts, ""])


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


def _text(
    runs: Sequence[RunResult], figure: Callable[[RunResult], float | None], digits: int, *, sign: bool = False
) -> str:
    return text(estimate([figure(run) for run in runs]), digits, sign=sign)
