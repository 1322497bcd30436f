"""The plan that ``--plan-json`` wrote before a run, and whether the run followed it.

    stages   first_step, num_steps, tokens, layer_tokens, flops, dense_flops, ... of each
    totals   the same of the whole run, and what it saves
    memory   bytes by part of a process of each pipeline stage; time: seconds and GPU-hours, if a speed was given

All steps of a stage are alike: what the plan expects after any step is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.json_text import parse_json
from megatron.ltd.plan.table import StageFigures
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.small_files import LARGE_BYTES, read_small

_AMOUNTS = ("tokens", "layer_tokens", "flops", "dense_flops")
_STAGE_FIELDS = {*_AMOUNTS, "first_step", "num_steps", "global_batch_samples", "kept_tokens", "first_lr", "last_lr"}
_TOTAL_FIELDS = {*_AMOUNTS, "steps", "equivalent_dense_tokens", "flops_saving"}


@dataclass(frozen=True)
class PlanFile:
    """A plan as its file holds it."""

    path: Path
    content: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.content["stages"][0]["kept_tokens"])

    @property
    def stages(self) -> list[StageFigures]:
        """Every stage of the plan."""
        names = _STAGE_FIELDS - {"kept_tokens"}
        return [
            StageFigures(
                kept_tokens=min(stage["kept_tokens"]),
                depth=sum(stage.get("keep_probability", [1.0] * self.num_layers)),
                **{name: stage[name] for name in names},
            )
            for stage in self.content["stages"]
        ]

    def after(self, num_steps: int, amount: str) -> int:
        """What the first ``num_steps`` steps take: "tokens", "layer_tokens" or "flops"."""
        total = 0
        for stage in self.content["stages"]:
            steps = min(stage["num_steps"], max(0, num_steps - stage["first_step"]))
            total += stage[amount] * steps // stage["num_steps"]
        return total

    def left_by(self, history: RunHistory) -> str | None:
        """A sentence if the log differs from the plan at its last step, else None."""
        last, planned_steps = history.steps[-1], self.content["totals"]["steps"]
        step = last["iteration"]
        if step > planned_steps:
            return f"The plan in {self.path.name} ends at step {planned_steps:,}, the log at {step:,}."
        logged = {"tokens": last["consumed_tokens"], "layer_tokens": last["consumed_layer_tokens"]}
        if history.iterations[0] == 1 and len(history.iterations) == step:
            logged["flops"] = history.flops[-1]
        for name, amount in logged.items():
            planned = self.after(step, name)
            if planned != amount:
                return (
                    f"The run did not follow the plan in {self.path.name}: after step {step:,} the plan has "
                    f"{planned:,} {name.replace('_', ' ')}, the log {amount:,}."
                )
        return None

    def figures(self) -> list[tuple[str, str]]:
        """Totals, and memory and time if the plan has them."""
        totals, memory, time = self.content["totals"], self.content.get("memory"), self.content.get("time")
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
        if memory:
            found.append(("memory of a GPU", _memory(max(stage["total_bytes"] for stage in memory))))
        if time:
            found += [("time", format_seconds(time["seconds"])), ("GPU-hours", f"{time['gpu_hours']:,.1f}")]
        return found


def _memory(amount_bytes: int) -> str:
    return f"{amount_bytes / 2**30:.2f} GiB" if amount_bytes >= 2**30 else f"{amount_bytes / 2**20:.2f} MiB"


def read_plan(path: Path) -> PlanFile:
    """The plan in a file. Raises ``UserError``."""
    fix = "give a file that --plan-json wrote"
    try:
        content = parse_json(read_small(path, LARGE_BYTES))
        stages, totals = content["stages"], content["totals"]
        whole = stages and totals.keys() >= _TOTAL_FIELDS and all(stage.keys() >= _STAGE_FIELDS for stage in stages)
    except OSError as error:
        raise UserError(f"--plan {path}: cannot be read ({error.strerror}); {fix}") from None
    except ValueError:
        raise UserError(f"--plan {path}: is not valid JSON; {fix}") from None
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"--plan {path}: has no stages and totals of a run; {fix}")
    return PlanFile(path, content)
