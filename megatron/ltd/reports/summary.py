"""Compares runs: what they reached, what they computed, and what they saved.

    saved, theoretical = 1 - FLOPs / FLOPs of the dense model over the same steps
    saved, measured    = 1 - (seconds / tokens) / (seconds / tokens of the dense run)

Seconds are those of training steps (forward, backward, update), without start-up, evaluation and saving. The measured
saving compares what other programs on the machine disturb least: processor seconds on a CPU, else seconds; and each
step counts as a fast one, the lower quartile of the steps of its run with as many FLOPs. It needs a dense run from the
same machine among the compared runs; the first one counts.
Not here: significance. One run is one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.ltd.flags import flag
from megatron.ltd.format import format_count, format_flops, text_table
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.runs import RunsConfig

_BUSY_SHARE = 0.3
_DENSE = "dense"  # in the run line of a run without a method


@dataclass(frozen=True)
class SummaryConfig(RunsConfig):
    """comparison"""

    plot: str | None = flag(
        None, metavar="FILE", help="write the loss curves to this .png, .pdf or .svg file, which is replaced"
    )


@dataclass(frozen=True)
class RunSummary:
    """One run in figures."""

    name: str
    validation_loss: float | None
    """Mean loss per token [nat] at the last evaluation; None if there was none."""
    perplexity: float | None
    start_perplexity: float | None
    """Before the first step; None if the run did not evaluate there."""
    lowest_perplexity: float | None
    """Of all evaluations."""
    num_steps: int
    tokens: int
    layer_tokens: int
    flops: int
    dense_flops: int
    """FLOPs of the dense model for the same steps."""
    seconds: float
    fast_seconds: float
    """Seconds, if each step counts as the lower quartile of the steps with as many FLOPs."""
    fast_cpu_seconds: float | None
    """The same of processor seconds; None if they are not logged."""
    idle_share: float | None
    """Share of the seconds in which other programs had the processor; None if it is not logged."""
    is_dense: bool

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def theoretical_saving(self) -> float:
        """Share of the dense FLOPs that the run saves."""
        return 1.0 - self.flops / self.dense_flops

    def measured_saving(self, dense: RunSummary) -> float:
        """Share of the time per token of ``dense`` that this run saves, by processor seconds if both have them."""
        taken, whole = self.fast_seconds, dense.fast_seconds
        if self.fast_cpu_seconds is not None and dense.fast_cpu_seconds is not None:
            taken, whole = self.fast_cpu_seconds, dense.fast_cpu_seconds
        return 1.0 - (taken / self.tokens) / (whole / dense.tokens)


def summarize(history: RunHistory) -> RunSummary:
    """The figures of a run, from all of its steps."""
    last = history.steps[-1]
    idle = [step["step_idle_seconds"] for step in history.steps if step.get("step_idle_seconds") is not None]
    cpu_seconds = _fast(history, "step_cpu_seconds")
    none = {"iteration": None, "loss": None}
    first_validation, last_validation = (history.validations or (none,))[0], (history.validations or (none,))[-1]
    perplexities = [line["perplexity"] for line in history.validations if line.get("perplexity") is not None]
    return RunSummary(
        name=history.name,
        validation_loss=last_validation["loss"],
        perplexity=last_validation.get("perplexity"),
        start_perplexity=first_validation.get("perplexity") if first_validation["iteration"] == 0 else None,
        lowest_perplexity=min(perplexities, default=None),
        num_steps=last["iteration"],
        tokens=last["consumed_tokens"],
        layer_tokens=last["consumed_layer_tokens"],
        flops=history.flops[-1],
        dense_flops=sum(step["dense_step_flops"] for step in history.steps),
        seconds=history.seconds[-1],
        fast_seconds=sum(_fast(history, "step_seconds") or ()),
        fast_cpu_seconds=None if cpu_seconds is None else sum(cpu_seconds),
        idle_share=sum(idle) / history.seconds[-1] if len(idle) == len(history.steps) else None,
        is_dense=history.about.get("method") == _DENSE,
    )


def _fast(history: RunHistory, field: str) -> list[float] | None:
    """A time of each step as a fast one: see ``RunSummary.fast_seconds``. None if a step has not logged it."""
    times_by_flops: dict[int, list[float]] = {}
    for step in history.steps:
        if step.get(field) is None:
            return None
        times_by_flops.setdefault(step["step_flops"], []).append(step[field])
    return [sorted(times)[(len(times) - 1) // 4] for times in times_by_flops.values() for _ in times]


def busy_note(summaries: Sequence[RunSummary]) -> str | None:
    """A line if other programs used the processors, so that seconds of these runs cannot be compared."""
    shares = [(summary.name, summary.idle_share) for summary in summaries if summary.idle_share is not None]
    if not any(share > _BUSY_SHARE for _, share in shares):
        return None
    listed = ", ".join(f"{share:.0%} of {name}" for name, share in shares)
    return f"the machine was busy: other programs had the processor for {listed}; do not compare seconds"


def summary_table(summaries: Sequence[RunSummary]) -> str:
    """One column per run. Perplexities before training and the lowest are shown if they add something."""
    dense = next((summary for summary in summaries if summary.is_dense), None)
    rows = [
        ("validation loss", [_decimal(summary.validation_loss, 4) for summary in summaries]),
        ("perplexity", [_decimal(summary.perplexity, 2) for summary in summaries]),
    ]
    if any(summary.lowest_perplexity != summary.perplexity for summary in summaries):
        rows.append(("perplexity, lowest", [_decimal(summary.lowest_perplexity, 2) for summary in summaries]))
    if any(summary.start_perplexity is not None for summary in summaries):
        rows.append(("perplexity before training", [_decimal(summary.start_perplexity, 2) for summary in summaries]))
    rows += [
        ("steps", [str(summary.num_steps) for summary in summaries]),
        ("tokens", [format_count(summary.tokens) for summary in summaries]),
        ("layer tokens", [format_count(summary.layer_tokens) for summary in summaries]),
        ("FLOPs", [format_flops(summary.flops) for summary in summaries]),
        ("seconds in training steps", [_decimal(summary.seconds, 1) for summary in summaries]),
        ("tokens a second", [_decimal(summary.tokens_per_second, 0) for summary in summaries]),
        ("saved, theoretical (FLOPs)", [_saving(summary, summary.theoretical_saving) for summary in summaries]),
    ]
    if dense is not None:
        measured = [_saving(summary, summary.measured_saving(dense)) for summary in summaries]
        unit = "seconds" if any(summary.fast_cpu_seconds is None for summary in summaries) else "CPU seconds"
        rows.append((f"saved, measured ({unit})", measured))
    return text_table(((label, *cells) for label, cells in rows), ("", *(summary.name for summary in summaries)))


def _decimal(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _saving(summary: RunSummary, share: float) -> str:
    return "-" if summary.is_dense else f"{100.0 * share:.1f} %"
