"""Rows as figures, tables and goals.

tokens/s             tokens of a step / median seconds of a step, over all rounds and turns
of the peak          FLOPs of a step / (its seconds x published peak of the GPU)
FLOPs, time saved    1 - FLOPs / those of the dense step;  1 - median of (seconds / those of the dense step beside it)
routing              seconds of the draw, gather and scatter by the profiler / seconds of the step
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import TYPE_CHECKING

from common.page import facts

from megatron.ltd.format import markdown_table
from megatron.ltd.training.throughput import Throughput

from .cases import BLOCK_SIZES, KEPT_PARTS, Model
from .config import AS_IN_A_RUN, CONTENDERS, OURS, SHAPES

if TYPE_CHECKING:
    from .record import Record, Row

DENSE_SHARE, REALISED, RUN_TOKENS_PER_SECOND = 0.55, 0.97, 88_000
"""The goals: of an H100's peak, of the theoretical saving, and over the random-LTD run of 1.3B"""
_HEADER = [
    "", "micro-batch", "s a step", "tokens/s", "TFLOP/s", "of the peak", "FLOPs saved", "time saved",
    "time / FLOPs", "routing", "peak GiB", "planned GiB", "planned / peak",
]  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What is made of the rows of one arm, those of all turns together."""

    rows: tuple[Row, ...]

    @property
    def row(self) -> Row:
        """One of them; they differ in what was measured."""
        return self.rows[0]

    @property
    def seconds(self) -> float:
        """Of a step."""
        return median(seconds for row in self.rows for seconds in row.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.row.tokens / self.seconds

    def speed(self, peak_tflops: float | None) -> dict[str, float]:
        """``Throughput.measures`` of the step."""
        return Throughput(1, peak_tflops).measures(self.row.flops, self.seconds)

    @property
    def theoretical(self) -> float | None:
        """Share of the dense step's FLOPs that is saved; None for a dense row."""
        return 1 - self.row.flops / self.row.dense_flops if self.row.kept_tokens is not None else None

    @property
    def realised(self) -> float | None:
        """The same of its time."""
        pairs = [pair for row in self.rows for pair in zip(row.seconds, row.dense_seconds, strict=False)]
        return 1 - median(seconds / dense for seconds, dense in pairs) if pairs else None

    @property
    def share_realised(self) -> float | None:
        """How much of the theoretical saving is real."""
        if self.realised is None or not self.theoretical:
            return None
        return self.realised / self.theoretical

    @property
    def routing_share(self) -> float | None:
        """Share of the step; None where it is not measured."""
        found = [row.routing_seconds for row in self.rows if row.routing_seconds is not None]
        return fmean(found) / self.seconds if found else None

    @property
    def peak_bytes(self) -> int | None:
        return max((row.peak_bytes for row in self.rows if row.peak_bytes is not None), default=None)


def figures(rows: Iterable[Row]) -> list[Figures]:
    """The figures of every arm that was measured, in the order of its first row."""
    arms: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if not row.failed:
            arms.setdefault(row.key[:-1], []).append(row)
    return [Figures(tuple(found)) for found in arms.values()]


def row_line(row: Row, peak_tflops: float | None) -> str:
    """A row in one line, for the console."""
    place = f"micro-batch {row.micro_batch_size}, visit {row.visit}"
    name = f"{row.model.upper()}, {CONTENDERS[row.contender]}, {row.arm}, {place}"
    if row.failed:
        return f"{name}: failed, {row.failed}"
    found = Figures((row,))
    return (
        f"{name}: {found.seconds:.3f} s a step, {found.tokens_per_second:,.0f} tokens/s{_of_peak(found, peak_tflops)}"
    )


def _of_peak(found: Figures, peak_tflops: float | None) -> str:
    share = found.speed(peak_tflops).get("mfu")
    return "" if share is None else f", {share:.1%} of the peak"


def page(record: Record) -> str:
    """All rows as Markdown."""
    peak, tiny = record.settings["peak_tflops"], record.settings["tiny"]
    lines = ["# Training on a GPU: measured", "", facts(record.about | _terms(record))]
    lines += ["", "Tiny models: these figures say only that the program works."] if tiny else []
    found = figures(record.rows.values())
    for name in SHAPES:
        table = [_cells(each, peak) for each in found if each.row.model == name]
        if table:
            lines += ["", f"## GPT-3 {name.upper()}", "", markdown_table(table, _HEADER)]
    lines += ["", "## Goals", "", markdown_table(_goals(record, found), ["", "goal", "measured"])]
    failed = [row for row in record.rows.values() if row.failed]
    if failed:
        lines += ["", "## Failed", "", *(f"- {row_line(row, None)}" for row in failed)]
    return "\n".join(lines) + "\n"


def _terms(record: Record) -> dict[str, str]:
    """What all rows share."""
    peak, settings = record.settings["peak_tflops"], record.settings
    known = f"{peak:g} TFLOP/s in {settings['peak_dtype']}, as published" if peak else "not known"
    rounds = f"{settings['rounds']} rounds a visit, after {settings['warmup_rounds']} that are not measured"
    flags = settings["run_flags"]
    return {"peak": known, "rounds": rounds} | ({"flags of our models": f"`{flags}`"} if flags else {})


def _cells(found: Figures, peak_tflops: float | None) -> list[str]:
    row, speed = found.row, found.speed(peak_tflops)
    planned, peak = row.planned_bytes, found.peak_bytes
    return [
        f"{CONTENDERS[row.contender]}, {row.arm}" if row.contender in AS_IN_A_RUN else CONTENDERS[row.contender],
        f"{row.micro_batch_size}",
        f"{found.seconds:.3f}",
        f"{found.tokens_per_second:,.0f}",
        f"{speed['tflops_per_device']:.1f}",
        _share(speed.get("mfu")),
        _share(found.theoretical),
        _share(found.realised),
        _number(found.share_realised),
        _share(found.routing_share),
        _number(None if peak is None else peak / 2**30),
        _number(None if planned is None else planned / 2**30),
        _number(None if planned is None or not peak else planned / peak),
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _goals(record: Record, found: list[Figures]) -> Iterable[list[str]]:
    """A row for each goal and contender of ours; what is not measured says so."""
    peak, tiny = record.settings["peak_tflops"], record.settings["tiny"]
    goal = partial(_goal, judged=not tiny)
    for contender in OURS:
        ours = [each for each in found if each.row.contender == contender]
        name = CONTENDERS[contender]
        for shape in SHAPES:
            dense = _of(ours, shape, None, 1)
            share = None if dense is None else dense.speed(peak).get("mfu")
            yield goal(f"{shape.upper()}, dense, of the peak; {name}", DENSE_SHARE, share, ".2%")
            for part in KEPT_PARTS[1:]:
                length = Model(shape, tiny).shape.seq_length
                least = [_of(ours, shape, length // part, size) for size in BLOCK_SIZES]
                ratios = [each.share_realised for each in least if each is not None and each.share_realised is not None]
                ratio = min(ratios) if len(ratios) == len(BLOCK_SIZES) else None
                yield goal(f"{shape.upper()}, K = S/{part}, time / FLOPs saved; {name}", REALISED, ratio, ".3f")
        for size in BLOCK_SIZES:
            speed = run_tokens_per_second(Model("1.3b", tiny), ours, size)
            tokens = "single tokens" if size == 1 else f"blocks of {size}"
            what = f"1.3B, whole run with {tokens}, tokens/s; {name}"
            yield goal(what, RUN_TOKENS_PER_SECOND, speed, ",.0f")


def _goal(what: str, goal: float, measured: float | None, form: str, *, judged: bool) -> list[str]:
    if measured is None:
        return [what, f"{goal:{form}}", "not measured"]
    verdict = f", {'met' if measured >= goal else 'missed'}" if judged else ""
    return [what, f"{goal:{form}}", f"{measured:{form}}{verdict}"]


def _of(found: Iterable[Figures], model: str, kept_tokens: int | None, block_size: int) -> Figures | None:
    """The arm at its largest micro-batch, on torch's kernels: the goals are those of a run without further flags."""
    fits = [
        each
        for each in found
        if (each.row.model, each.row.kept_tokens, each.row.block_size) == (model, kept_tokens, block_size)
        and each.row.ltd_kernels == "torch"
    ]
    return max(fits, key=lambda each: each.row.micro_batch_size, default=None)


def run_tokens_per_second(model: Model, ours: Iterable[Figures], block_size: int) -> float | None:
    """Mean tokens/s of a GPU over the recipe's whole random-LTD run, without messages between GPUs.

    The time of a step lies on the line between the two measured steps with next more and next fewer FLOPs. None if a
    row is missing.
    """
    ours, shape = list(ours), model.shape
    wanted = [(shape.seq_length // part, block_size) for part in KEPT_PARTS] + [(None, 1)]
    rows = [_of(ours, model.name, kept, size) for kept, size in wanted]
    points = [(each.row.flops / each.row.samples, each.seconds / each.row.samples) for each in rows if each is not None]
    if len(points) < len(wanted):
        return None
    plan = model.run_plan(block_size)
    samples = seconds = 0.0
    for stage in plan.stages:
        flops = (plan.flops(stage.end_step) - plan.flops(stage.first_step)) / stage.num_steps
        number = stage.num_steps * stage.global_batch_samples
        samples += number
        seconds += number * _between(points, flops / stage.global_batch_samples)
    return samples * shape.seq_length / seconds


def _between(points: list[tuple[float, float]], at: float) -> float:
    """The value at ``at`` of the line through the neighbouring ``points``, ascending."""
    lower = max(place for place in range(len(points) - 1) if place == 0 or points[place][0] <= at)
    (left, low), (right, high) = points[lower : lower + 2]
    return low + (high - low) * (at - left) / (right - left)
