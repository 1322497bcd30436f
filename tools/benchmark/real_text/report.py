"""The comparison's figures: means, standard errors, differences paired by seed; as Markdown and as JSON.

    mean and standard error over seeds    x_bar,  s / sqrt(n)              s: sample standard deviation (n - 1)
    difference to dense, paired by seed   mean and standard error of d_i = x_i - dense_i
    theoretical saving                    1 - FLOPs / dense FLOPs of as many steps, or of the dense variant
    realised saving                       mean and standard error of 1 - CPU seconds_i / dense CPU seconds_i

A pair shares its seed: initial weights and, at equal steps, data in the same order. Built from finished runs alone.
"""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron.ltd.format import format_count, format_flops

from .recipe import DENSE
from .runs import RunResult

Figure = Callable[[RunResult], float | None]


@dataclass(frozen=True)
class Estimate:
    """Mean over ``count`` seeds and its standard error (None with one seed)."""

    mean: float
    standard_error: float | None
    count: int

    def text(self, digits: int, *, sign: bool = False, scale: float = 1.0) -> str:
        """``"1.4185 ± 0.0007"``."""
        mean = f"{self.mean * scale:{'+' if sign else ''}.{digits}f}"
        return mean if self.standard_error is None else f"{mean} ± {self.standard_error * scale:.{digits}f}"


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean and standard error of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    error = statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Estimate(statistics.fmean(known), error, len(known))


def paired(
    results: Sequence[RunResult], baseline: Sequence[RunResult], figure: Callable[..., float | None]
) -> Estimate | None:
    """Estimate of ``figure(result, dense result of the same seed)`` over the seeds that both have."""
    by_seed = {result.seed: result for result in baseline}
    return estimate([figure(result, by_seed[result.seed]) for result in results if result.seed in by_seed])


def _cpu_saving(result: RunResult, dense: RunResult) -> float | None:
    if result.cpu_seconds is None or dense.cpu_seconds is None:
        return None
    return 1 - result.cpu_seconds / dense.cpu_seconds


def summarize(results: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """By variant, for those with a finished run: every figure of the tables."""
    dense = [result for result in results if result.variant == DENSE]
    summary: dict[str, dict[str, Any]] = {}
    for variant in _variants(results):
        runs = sorted((result for result in results if result.variant == variant), key=lambda result: result.seed)
        summary[variant] = {
            "seeds": [run.seed for run in runs],
            "steps": runs[0].steps,
            "tokens": runs[0].tokens,
            "layer_tokens": runs[0].layer_tokens,
            "flops": runs[0].flops,
            "validation_loss": estimate([run.validation_loss for run in runs]),
            "cpu_seconds": estimate([run.cpu_seconds for run in runs]),
            "wall_seconds": estimate([run.wall_seconds for run in runs]),
            "training_seconds": estimate([run.training_seconds for run in runs]),
            "tokens_per_second": estimate([run.tokens / run.training_seconds for run in runs]),
            "loss_difference": paired(runs, dense, lambda run, base: run.validation_loss - base.validation_loss),
            "layer_tokens_saved": paired(runs, dense, lambda run, base: 1 - run.layer_tokens / base.layer_tokens),
            "flops_saved": paired(runs, dense, lambda run, base: 1 - run.flops / base.flops),
            "cpu_saved": paired(runs, dense, _cpu_saving),
            "training_time_saved": paired(
                runs, dense, lambda run, base: 1 - run.training_seconds / base.training_seconds
            ),
        }
    return summary


def _variants(results: Sequence[RunResult]) -> list[str]:
    """In the order of the runs."""
    return list(dict.fromkeys(result.variant for result in results))


def to_json(
    summary: Mapping[str, Mapping[str, Any]], results: Sequence[RunResult], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything in the report and every run behind it."""
    plain = {
        variant: {name: asdict(value) if isinstance(value, Estimate) else value for name, value in figures.items()}
        for variant, figures in summary.items()
    }
    return {**about, "variants": plain, "runs": [asdict(result) for result in results]}


def to_markdown(
    summary: Mapping[str, Mapping[str, Any]], results: Sequence[RunResult], about: Mapping[str, Any]
) -> str:
    """The report as a page."""
    expected = about["runs_planned"]
    lines = [f"# {about['title']}", ""]
    if len(results) < expected:
        lines += [f"**Unfinished: {len(results)} of {expected} runs.**", ""]
    lines += [about["reading"] or "Reading: not written yet (`--reading`).", ""]
    lines += _table(
        ("variant", "seeds", "steps", "validation loss", "layer tokens", "FLOPs", "CPU s", "wall s", "tokens/s"),
        [
            (
                variant,
                f"{len(figures['seeds'])}",
                f"{figures['steps']}",
                _text(figures["validation_loss"], 4),
                format_count(figures["layer_tokens"]),
                format_flops(figures["flops"]),
                _text(figures["cpu_seconds"], 1),
                _text(figures["wall_seconds"], 1),
                _text(figures["tokens_per_second"], 0),
            )
            for variant, figures in summary.items()
        ],
    )
    lines += ["", "Against dense, paired by seed:", ""]
    lines += _table(
        (
            "variant",
            "loss difference",
            "layer tokens saved",
            "FLOPs saved (theory)",
            "CPU time saved (realised)",
            "step time saved",
        ),
        [
            (
                variant,
                _text(figures["loss_difference"], 4, sign=True),
                _text(figures["layer_tokens_saved"], 1, percent=True, error=False),
                _text(figures["flops_saved"], 1, percent=True, error=False),
                _text(figures["cpu_saved"], 1, percent=True),
                _text(figures["training_time_saved"], 1, percent=True),
            )
            for variant, figures in summary.items()
            if variant != DENSE
        ],
    )
    return "\n".join([*lines, "", *_legend(about["jobs"]), "", *_seed_table(results), "", *_facts(about), ""])


def _legend(jobs: int) -> list[str]:
    return [
        "± is the standard error over seeds. CPU and wall seconds are of the whole process: start, steps, checkpoints,",
        "one evaluation. Step time and tokens/s (raw tokens) are of training steps alone, in wall time"
        + ("." if jobs == 1 else ", beside another"),
        *([] if jobs == 1 else ["run."]),
    ]


def _seed_table(results: Sequence[RunResult]) -> list[str]:
    """Validation loss of every run: variants down, seeds across."""
    losses = {(result.variant, result.seed): f"{result.validation_loss:.4f}" for result in results}
    seeds = sorted({result.seed for result in results})
    rows = [(variant, *(losses.get((variant, seed), "-") for seed in seeds)) for variant in _variants(results)]
    return _table(("validation loss", *(f"seed {seed}" for seed in seeds)), rows)


def _facts(about: Mapping[str, Any]) -> list[str]:
    corpus, recipe = about["corpus"], about["recipe"]
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    at_a_time = "one run at a time" if about["jobs"] == 1 else f"{about['jobs']} runs at a time"
    page = [
        f"- Command: `{about['command']}`, {about['date']}.",
        f"- Machine: {about['machine']}; {versions}; one thread a run, {at_a_time}.",
        f"- Data: {', '.join(corpus['books'])}; {corpus['train_tokens']:,} training tokens, evaluated on "
        f"{corpus['held_out_tokens']:,} held-out tokens (the end of every book); sha256 `{corpus['sha256']}`.",
        f"- Model: {recipe['num_layers']} layers, hidden {recipe['hidden_size']}, "
        f"{recipe['num_attention_heads']} heads, {recipe['seq_length']} tokens, SentencePiece vocabulary "
        f"{recipe['vocab_size']}; rotary positions, RMSNorm, SwiGLU, untied embeddings, no biases, "
        f"no dropout, initial deviation {recipe['init_std']:g}.",
        f"- Training: {recipe['batch_samples']} samples a step, Adam, learning rate {recipe['lr']:g} to "
        f"{recipe['min_lr']:g} (cosine over each run's own length, warm-up {recipe['warmup_fraction']:.0%}).",
    ]
    page += [f"- {variant}: `{shlex.join(flags)}`." for variant, flags in about["method_flags"].items() if flags]
    if about["resumed_runs"]:
        page.append(f"- Stopped and continued, seconds added up: {', '.join(about['resumed_runs'])}.")
    return page


def _text(value: Estimate | None, digits: int, *, sign: bool = False, percent: bool = False, error: bool = True) -> str:
    if value is None:
        return "-"
    shown = value if error else Estimate(value.mean, None, value.count)
    return shown.text(digits, sign=sign, scale=100.0 if percent else 1.0) + (" %" if percent else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column is a name, the rest are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
