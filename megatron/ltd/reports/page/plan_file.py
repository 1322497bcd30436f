"""The plan that ``--plan-json`` wrote before a run, and whether the run followed it.

All steps of a stage are alike: what the plan expects after any step is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.format import format_count, format_flops, format_seconds
from megatron.ltd.json_text import parse_json
from megatron.ltd.plan.table import STAGE_FIELDS, StageFigures
from megatron.ltd.reports.metrics import RunHistory
from megatron.ltd.small_files import LARGE_BYTES, read_small


@dataclass(frozen=True)
class PlanFile:
    """A plan as its file holds it."""

    file: str
    num_layers: int
    stages: Sequence[StageFigures]
    figures: Sequence[tuple[str, str]]
    """Totals, and memory and time if the plan has them: their names and texts."""

    def after(self, num_steps: int, amount: str) -> int:
        """What the first ``num_steps`` steps take: "tokens", "layer_tokens" or "flops"."""
        return sum(
            getattr(stage, amount) * min(stage.num_steps, max(0, num_steps - stage.first_step)) // stage.num_steps
            for stage in self.stages
        )

    def left_by(self, history: RunHistory) -> str | None:
        """A sentence if the log differs from the plan at its last step, else None."""
        last, planned_steps = history.steps[-1], sum(stage.num_steps for stage in self.stages)
        step = last["iteration"]
        if step > planned_steps:
            return f"The plan in {self.file} ends at step {planned_steps:,}, the log at {step:,}."
        logged = {"tokens": last["consumed_tokens"], "layer_tokens": last["consumed_layer_tokens"]}
        if len(history.steps) == step:
            logged["flops"] = history.flops[-1]
        for name, amount in logged.items():
            if (planned := self.after(step, name)) != amount:
                return (
                    f"The run did not follow the plan in {self.file}: after step {step:,} the plan has "
                    f"{planned:,} {name.replace('_', ' ')}, the log {amount:,}."
                )
        return None


def read_plan(path: Path) -> PlanFile:
    """The plan in a file. Raises ``UserError``."""
    fix = "give a file that --plan-json wrote"
    try:
        content = parse_json(read_small(path, LARGE_BYTES))
        stages = [_stage(stage) for stage in content["stages"]]
        return PlanFile(path.name, len(content["stages"][0]["kept_tokens"]), stages, [*_figures(content)])
    except OSError as error:
        raise UserError(f"--plan {path}: cannot be read ({error.strerror}); {fix}") from None
    except JSONDecodeError:
        raise UserError(f"--plan {path}: is not valid JSON; {fix}") from None
    except (LookupError, TypeError, AttributeError, ValueError):
        raise UserError(f"--plan {path}: has no stages and totals of a run; {fix}") from None


def _stage(stage: Mapping[str, Any]) -> StageFigures:
    kept_tokens = stage["kept_tokens"]
    depth = sum(stage.get("keep_probability", [1.0] * len(kept_tokens)))
    return StageFigures(kept_tokens=min(kept_tokens), depth=depth, **{name: stage[name] for name in STAGE_FIELDS})


def _figures(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    totals = plan["totals"]
    if "parameters" in plan:
        yield "parameters", format_count(plan["parameters"])
    yield "steps", f"{totals['steps']:,}"
    yield "tokens", format_count(totals["tokens"])
    yield "layer tokens", format_count(totals["layer_tokens"])
    yield "dense tokens of as many FLOPs", format_count(totals["equivalent_dense_tokens"])
    yield "FLOPs", format_flops(totals["flops"])
    yield "FLOPs saved", f"{totals['flops_saving']:.1%}"
    if plan.get("memory"):
        largest = max(stage["total_bytes"] for stage in plan["memory"])
        yield "memory of a GPU", f"{largest / 2**30:.2f} GiB" if largest >= 2**30 else f"{largest / 2**20:.2f} MiB"
    if plan.get("time"):
        yield "time", format_seconds(plan["time"]["seconds"])
        yield "GPU-hours", f"{plan['time']['gpu_hours']:,.1f}"
