"""The header of a run, printed before its first step: model, device, layout, plan, and warnings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from functools import partial
from typing import Any

from megatron.ltd.checkpoint.run_format import FORMAT_VERSION
from megatron.ltd.flags import flag_name
from megatron.ltd.forecast.forecast import rate_at, warnings_of
from megatron.ltd.format import format_count
from megatron.ltd.methods.base import METHOD
from megatron.ltd.models.fusions import fusions_of
from megatron.ltd.models.kernels import kernels_text, slow_kernels
from megatron.ltd.parallel.layout import layout_text
from megatron.ltd.parallel.mesh import lone_tasks
from megatron.ltd.plan.clock import SCHEDULE_IDS
from megatron.ltd.plan.table import LearningRate, stage_table
from megatron.ltd.training.build import versions
from megatron.ltd.training.run import Run
from megatron.ltd.words import by_default

_LENGTHS = ("train_iters", "train_samples", "train_tokens")


def print_header(run: Run) -> None:
    """Print the header and write the run's first line in metrics.jsonl."""
    plan, model = run.plan, run.config.model
    about = versions(run.mesh)
    print_line = run.log.print_line
    print_line(
        f"model     {model.num_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.seq_length} tokens, {run.workload.sizes.outputs}: "
        f"{format_count(run.workload.num_parameters)} parameters"
    )
    print_line(
        f"runs on   {about['device']}, {about['world_size']} process{'es' if run.mesh.world_size > 1 else ''}, "
        f"{run.config.precision.dtype}; torch {about['torch']}, megatron-core {about['megatron-core']}; "
        f"{kernels_text(run.state.chunks, run.mesh.device, run.method.facts.kernels)}"
        f"{', each layer as a CUDA graph' if model.cuda_graph_impl == 'local' else ''}"
    )
    if run.throughput.peak_tflops is not None:
        print_line(f"peak      {run.throughput.peak_tflops:g} TFLOP/s per device, by which MFU is divided")
    if run.mesh.world_size > 1:
        print_line(f"layout    {layout_text(run.config.parallel, run.mesh.data_parallel_size, len(run.state.chunks))}")
    print_line(f"plan      {run.method.name}")
    defaults = by_default(run.method.settings, run.config.given)
    if defaults is not None:
        print_line(f"          {defaults}")
    print_line(stage_table(plan, _rate(run)))
    if run.progress.iteration >= plan.num_steps:
        for line in _finished(run):
            print_line(line)
    elif run.config.checkpoint.save is None:
        print_line(
            f"warning: --save is not given: nothing is kept of this run but its log in {run.log.folder}; add --save to "
            "keep the model"
        )
    slow = slow_kernels(run.state.chunks, run.mesh.device)
    fusions = fusions_of(model, run.mesh.device).warnings
    tasks = lone_tasks(run.mesh.world_size)
    for line in [*run.config.warnings, *warnings_of(plan), *slow, *fusions, *tasks]:
        print_line(line)
    run.log.run(_run_line(run, about))


def _finished(run: Run) -> Iterator[str]:
    """What a run that is at its end is, and how to go on from it."""
    yield f"the run is already at step {run.progress.iteration} of {run.plan.num_steps}: there is nothing left to do"
    config = run.config
    name = next(name for name in _LENGTHS if getattr(config.training, name) is not None)
    yield f"  longer  a larger {flag_name(type(config.training), name)}; what else keeps the schedule is then named"
    if config.scores is not None and config.checkpoint.load is not None:
        folder = shlex.quote(config.checkpoint.load)
        yield f"  score   megatron-ltd evaluate --load {folder} --tasks lambada_openai"
        yield f"  export  megatron-ltd export --load {folder} --output FOLDER"


def _rate(run: Run) -> LearningRate:
    """The learning rate of each step, on the scheduler's clock; NaN for steps that other flags have done before."""
    scheduler = run.state.scheduler
    ahead = run.plan.ahead(run.progress.iteration, scheduler.num_steps, run.clock.unit)
    schedule = {name: getattr(scheduler, name) for name in SCHEDULE_IDS}
    rate = partial(rate_at, run.clock, run.plan, schedule, ahead=ahead)
    done = run.progress.iteration if run.changes_schedule else 0
    return lambda step: math.nan if step < done else rate(step)


def _run_line(run: Run, about: dict[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "config": run.config.to_dict(),
        "versions": about,
        "data": dict(run.workload.fingerprints),
        "method": run.method.settings[METHOD],
        "method_settings": dict(run.method.settings),
        "num_steps": run.plan.num_steps,
        "peak_tflops": run.throughput.peak_tflops,
        "resumed_at": run.progress.iteration,
    }
