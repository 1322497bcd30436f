"""The plan that was made of a run before it started: the file that ``--plan-json`` writes, and whether the run kept it.

    stages   first_step, num_steps, tokens, layer_tokens, flops, dense_flops, ... of each
    totals   the same of the whole run, and what it saves
    memory   bytes by part of a process of each pipeline stage; time: seconds and GPU-hours, where a speed was given

Inside a stage every step is alike, so that what the plan expects after any step is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.json_text import parse_json
from megatron.ltd.plan.table import format_rate
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.reports.page.stages import Row, shared_rows, span

HEADER = (
    "steps", "batch", "kept tokens", "tokens", "layer tokens", "learning rate", "FLOPs", "of dense", "share of FLOPs",
)  # fmt: skip
_AMOUNTS = ("tokens", "layer_tokens", "flops", "dense_flops")
_STAGE_FIELDS = {*_AMOUNTS, "first_step", "num_steps", "global_batch_samples", "kept_tokens", "first_lr", "last_lr"}
_TOTAL_FIELDS = {*_AMOUNTS, "steps", "equivalent_dense_tokens", "flops_saving"}


@dataclass(frozen=True)
class PlanFile:
    """A plan as its file holds it."""

    path: Path
    content: Mapping[str, Any]

    @property
    def _stages(self) -> Sequence[Mapping[str, Any]]:
        return self.content["stages"]

    def after(self, num_steps: int, amount: str) -> int:
        """What the first ``num_steps`` steps take: "tokens", "layer_tokens" or "flops"."""
        total = 0
        for stage in self._stages:
            steps = min(stage["num_steps"], max(0, num_steps - stage["first_step"]))
            total += stage[amount] * steps // stage["num_steps"]
        return total

    def left_by(self, history: RunHistory) -> str | None:
        """A sentence where the log differs from the plan at its last step, or None."""
        last = history.steps[-1]
        step = last["iteration"]
        if step > self.content["totals"]["steps"]:
            return (
                f"The plan in {self.path.name} ends at step {self.content['totals']['steps']:,}, the log at {step:,}."
            )
        logged = {"tokens": last["consumed_tokens"], "layer_tokens": last["consumed_layer_tokens"]}
        if history.iterations[0] == 1 and len(history.iterations) == step:
            logged["flops"] = history.flops[-1]
        for name, amount in logged.items():
            planned = self.after(step, name)
            if planned != amount:
                return (
                    f"The run is not as planned in {self.path.name}: after step {step:,} the plan has {planned:,} "
                    f"{name.replace('_', ' ')}, the log {amount:,}."
                )
        return None

    def rows(self) -> list[Row]:
        """The stages, neighbours in a row where they are many."""
        return [self._row(self._stages[first:end]) for first, end in shared_rows(len(self._stages))]

    def _row(self, stages: Sequence[Mapping[str, Any]]) -> Row:
        first, last = stages[0], stages[-1]
        amounts = {name: sum(stage[name] for stage in stages) for name in _AMOUNTS}
        return (
            span(first["first_step"] + 1, last["first_step"] + last["num_steps"]),
            span(first["global_batch_samples"], last["global_batch_samples"]),
            span(min(first["kept_tokens"]), min(last["kept_tokens"])),
            format_count(amounts["tokens"]),
            format_count(amounts["layer_tokens"]),
            span(format_rate(first["first_lr"]), format_rate(last["last_lr"])),
            format_flops(amounts["flops"]),
            f"{amounts['flops'] / amounts['dense_flops']:.1%}",
            f"{amounts['flops'] / self.content['totals']['flops']:.1%}",
        )

    def figures(self) -> list[tuple[str, str]]:
        """Totals, and memory and time where the plan has them."""
        totals = self.content["totals"]
        found = [
            ("steps", f"{totals['steps']:,}"),
            ("tokens", format_count(totals["tokens"])),
            ("layer tokens", format_count(totals["layer_tokens"])),
            ("dense tokens of as many FLOPs", format_count(totals["equivalent_dense_tokens"])),
            ("FLOPs", format_flops(totals["flops"])),
            ("FLOPs saved", f"{totals['flops_saving']:.1%}"),
        ]
        if "parameters" in self.content:
            found.insert(0, ("parameters", format_count(self.content["parameters"])))
        memory = self.content.get("memory") or []
        if memory:
            found.append(("memory of a GPU", _memory(max(stage["total_bytes"] for stage in memory))))
        time = self.content.get("time")
        if time:
            found += [("time", format_seconds(time["seconds"])), ("GPU-hours", f"{time['gpu_hours']:,.1f}")]
        return found


def _memory(amount_bytes: int) -> str:
    return f"{amount_bytes / 2**30:.2f} GiB" if amount_bytes >= 2**30 else f"{amount_bytes / 2**20:.2f} MiB"


def read_plan(path: Path) -> PlanFile:
    """The plan in a file. Raises ``UserError``."""
    fix = "name a file that --plan-json wrote"
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--plan {path} cannot be read ({error.strerror}): {fix}") from None
    except ValueError:
        raise UserError(f"--plan {path} is not whole JSON: {fix}") from None
    try:
        stages, totals = content["stages"], content["totals"]
        whole = (
            bool(stages) and totals.keys() >= _TOTAL_FIELDS and all(stage.keys() >= _STAGE_FIELDS for stage in stages)
        )
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"--plan {path} holds no stages and totals of a run: {fix}")
    return PlanFile(path, content)
