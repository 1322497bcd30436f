"""The forecast of a run as text and as JSON: table of stages, totals, parameters, memory, time.

Text rounds numbers for reading; JSON has exact integers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from megatron.ltd.flags import field_id
from megatron.ltd.forecast.config import GPU_MEMORY_GB
from megatron.ltd.forecast.duration import Speed
from megatron.ltd.forecast.layout import Layout
from megatron.ltd.forecast.memory import StageMemory
from megatron.ltd.format import format_flops, format_ranges, format_seconds, text_table
from megatron.ltd.methods.base import METHOD
from megatron.ltd.plan.parameters import ModelSizes
from megatron.ltd.plan.run_plan import RunPlan
from megatron.ltd.plan.table import STAGE_FIELDS, LearningRate, planned_stages, stage_table

if TYPE_CHECKING:
    from megatron.ltd.config import Entry

_GIB = 2**30
_Line = tuple[str, str]
"""A label, and its value with a note."""


@dataclass(frozen=True)
class Answer:
    """The answer to a question of planning: the flags that reach the target."""

    asked: Mapping[str, float]
    """The flag with the target, and its value."""
    flags: Mapping[str, int]
    about: str

    def lines(self) -> Iterator[_Line]:
        """The answer, and its effect."""
        flags = " or ".join(f"{name} {value}" for name, value in self.flags.items())
        yield _line("answer", flags, " ".join(f"{name} {value:g}" for name, value in self.asked.items()))
        yield _line("", self.about)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, by id."""
        asked, found = (
            {field_id(spelling): value for spelling, value in flags.items()} for flags in (self.asked, self.flags)
        )
        return {"asked": asked, "found": found}


@dataclass(frozen=True)
class Forecast:
    """The forecast. ``rate`` is the learning rate by step; ``memory`` is that of each pipeline stage."""

    workload: Entry
    method: str
    """The title of the method."""
    settings: Mapping[str, Any]
    """By id, the settings that the plan and the draws of the method depend on."""
    defaults: str | None
    """A line about those of them that no flag gives."""
    sizes: ModelSizes
    plan: RunPlan
    rate: LearningRate
    train_tokens: int
    """The length of the run on its clock, in the unit of ``--train-tokens``."""
    layout: Layout
    dtype: str
    memory: tuple[StageMemory, ...]
    speed: Speed | None
    gpu: str | None
    """The kind of GPU, if it is named."""
    answer: Answer | None

    @property
    def fullest(self) -> StageMemory:
        """The pipeline stage with the most memory per process."""
        return max(self.memory, key=lambda stage: stage.total)

    @property
    def fits(self) -> bool:
        """Whether the fullest stage fits into the GPU that is named; True if none is."""
        return self.gpu is None or self.fullest.total <= GPU_MEMORY_GB[self.gpu] * 10**9

    def text(self) -> str:
        """The whole report."""
        shape = self.sizes.shape
        model = (
            f"{self.workload.name}, {shape.num_layers} layers, hidden {shape.hidden_size}, "
            f"{shape.num_attention_heads} heads, {shape.seq_length} tokens, {self.sizes.outputs}"
        )
        about = [_line("model", model), _line("method", self.method), _line("layout", self.layout.text)]
        if self.defaults is not None:
            about.insert(2, _line("", self.defaults))
        parts = [
            text_table([*about, *(self.answer.lines() if self.answer is not None else ())], num_labels=2),
            stage_table(self.plan, self.rate),
            text_table(self._totals(), num_labels=2),
            f"{self._memory_title}\n{text_table(self._memory(), num_labels=2)}",
            text_table(self._time(), num_labels=2),
        ]
        return "\n\n".join(parts)

    def _totals(self) -> Iterator[_Line]:
        plan, steps, num_layers = self.plan, self.plan.num_steps, self.sizes.shape.num_layers
        yield _line("parameters", f"{self.sizes.num_parameters:,}")
        yield _line("steps", f"{steps:,}")
        yield _line("samples", f"{plan.samples(steps):,}")
        yield _line("raw tokens", f"{plan.tokens(steps):,}")
        yield _line("layer tokens", f"{plan.layer_tokens(steps):,}")
        yield _line("layer tokens / layers", f"{plan.layer_tokens(steps) // num_layers:,}", "as --train-tokens counts")
        yield _line("equivalent dense tokens", f"{self._equivalent_tokens:,}", "of a dense run with as many FLOPs")
        yield _line("FLOPs", format_flops(plan.flops(steps)))
        yield _line("dense FLOPs", format_flops(plan.dense_flops(steps)), "of as many steps")
        yield _line("theoretical saving", f"{float(plan.layer_token_saving(steps)):.2%}", "of dense layer tokens")
        yield _line("saving of FLOPs", f"{plan.saving(steps):.2%}", "of dense FLOPs, LM head included")

    @property
    def _memory_title(self) -> str:
        stage, number = self.fullest, len(self.memory)
        where = f"pipeline stage {stage.number} of {number}, the fullest: " if number > 1 else ""
        return f"memory of a process ({where}layers {format_ranges(stage.layers)}, {self.dtype})"

    def _memory(self) -> Iterator[_Line]:
        stage = self.fullest
        for part, amount in stage.parts.items():
            yield _line(f"  {part}", _gib(amount))
        yield _line("  in all", _gib(stage.total), "without CUDA's context, NCCL's buffers and fragmentation")
        if self.gpu is not None:
            whole = GPU_MEMORY_GB[self.gpu] * 10**9
            fits = "fits" if self.fits else "does not fit: lower --micro-batch-size, or split or recompute more"
            yield _line(f"  of {self.gpu}", _gib(whole), fits)
        if len(self.memory) > 1:
            yield _line("  by stage", ", ".join(_gib(stage.total) for stage in self.memory))

    def _time(self) -> Iterator[_Line]:
        if self.speed is None:
            yield _line("time", "unknown", "give --plan-mfu with --plan-gpu, or --plan-step-seconds")
            return
        speed, steps = self.speed, self.plan.num_steps
        flops, dense = self.plan.flops(steps), self.plan.dense_flops(steps)
        mfu = "" if speed.mfu is None else f"{speed.mfu:.1%} of its peak"
        yield _line("speed of a GPU", f"{format_flops(speed.flops_per_second / speed.num_gpus)}/s", mfu)
        yield _line("time", format_seconds(speed.seconds(flops)))
        yield _line("GPU-hours", f"{speed.gpu_hours(flops):,.1f}")
        yield _line("dense time", format_seconds(speed.seconds(dense)), "of as many steps")
        yield _line("dense GPU-hours", f"{speed.gpu_hours(dense):,.1f}", "of as many steps")

    @property
    def _equivalent_tokens(self) -> int:
        """Tokens of a dense run with as many FLOPs, rounded."""
        steps, plan = self.plan.num_steps, self.plan
        return round(Fraction(plan.tokens(steps) * plan.flops(steps), plan.dense_flops(steps)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, integers exact, fractions as numbers."""
        plan, steps = self.plan, self.plan.num_steps
        flops, dense_flops = plan.flops(steps), plan.dense_flops(steps)
        answer = self.answer
        return {
            "task": self.workload.id,
            "method": self.settings[METHOD],
            "method_settings": dict(self.settings),
            "model": dataclasses.asdict(self.sizes.shape),
            "parameters": self.sizes.num_parameters,
            "layout": self.layout.to_dict(),
            "precision": self.dtype,
            "answer": None if answer is None else answer.to_dict(),
            "stages": [
                {
                    "kept_tokens": list(stage.plan.kept_tokens),
                    "keep_probability": list(stage.plan.keep_probability),
                    **{name: getattr(figures, name) for name in STAGE_FIELDS},
                }
                for stage, figures in zip(plan.stages, planned_stages(plan, self.rate), strict=True)
            ],
            "totals": {
                "steps": steps,
                "samples": plan.samples(steps),
                "tokens": plan.tokens(steps),
                "layer_tokens": plan.layer_tokens(steps),
                "train_tokens": self.train_tokens,
                "equivalent_dense_tokens": self._equivalent_tokens,
                "flops": flops,
                "dense_flops": dense_flops,
                "layer_token_saving": float(plan.layer_token_saving(steps)),
                "flops_saving": plan.saving(steps),
            },
            "memory": [stage.to_dict() for stage in self.memory],
            "time": None
            if self.speed is None
            else {
                "flops_per_second": self.speed.flops_per_second,
                "mfu": self.speed.mfu,
                "seconds": self.speed.seconds(flops),
                "gpu_hours": self.speed.gpu_hours(flops),
                "dense_seconds": self.speed.seconds(dense_flops),
                "dense_gpu_hours": self.speed.gpu_hours(dense_flops),
            },
        }


def _line(label: str, value: str, note: str = "") -> _Line:
    return label, value + (f"   ({note})" if note else "")


def _gib(amount_bytes: int) -> str:
    return f"{amount_bytes / _GIB:.2f} GiB"
