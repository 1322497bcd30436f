"""What a run prints before its first step: what it is, what it will do, and what is unusual about it."""

from __future__ import annotations

from functools import partial
from typing import Any

from megatron.ltd.checkpoint.run_format import FORMAT_VERSION
from megatron.ltd.forecast.forecast import rate_at, warnings_of
from megatron.ltd.format import format_count
from megatron.ltd.methods.base import METHOD
from megatron.ltd.plan.clock import SCHEDULE_IDS
from megatron.ltd.plan.table import LearningRate, stage_table
from megatron.ltd.training.build import Run, versions


def say_header(run: Run) -> None:
    """Print the header and write the run's first line in metrics.jsonl."""
    plan, model = run.plan, run.config.model
    about = versions(run.mesh)
    say = run.log.say
    say(
        f"model     {model.num_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.seq_length} tokens, {run.task.sizes.outputs}: {format_count(run.task.num_parameters)} parameters"
    )
    say(
        f"runs on   {about['device']}, {about['world_size']} process{'es' if run.mesh.world_size > 1 else ''}, "
        f"{run.config.precision.dtype}; torch {about['torch']}, megatron-core {about['megatron-core']}"
    )
    if run.mesh.world_size > 1:
        say(f"layout    {_layout(run)}")
    say(f"plan      {run.method.name}")
    say(stage_table(plan, _rate(run)))
    if run.progress.iteration >= plan.num_steps:
        say(f"the run is already at step {run.progress.iteration} of {plan.num_steps}: nothing is left to do")
    for line in warnings_of(plan):
        say(line)
    run.log.run(_run_line(run, about))


def _rate(run: Run) -> LearningRate:
    """The learning rate by step, from where the scheduler stands; of steps before that, as if the flags were theirs."""
    scheduler, done = run.state.scheduler, min(run.progress.iteration, run.plan.num_steps)
    ahead = scheduler.num_steps - run.plan.clock(done, run.clock.unit)
    schedule = {name: getattr(scheduler, name) for name in SCHEDULE_IDS}
    return partial(rate_at, run.clock, run.plan, schedule, ahead=ahead)


def _layout(run: Run) -> str:
    """How the processes divide the work, such as "tensor 2 with sequence parallelism x pipeline 2 x data 2"."""
    parallel, chunks = run.config.parallel, len(run.state.chunks)
    interleaved = f" interleaved in {chunks} chunks each" if chunks > 1 else ""
    sharded = " with distributed optimizer" if parallel.use_distributed_optimizer else ""
    sizes = (
        (parallel.tensor_model_parallel_size, "tensor", " with sequence parallelism" * parallel.sequence_parallel),
        (parallel.context_parallel_size, "context", ""),
        (parallel.pipeline_model_parallel_size, "pipeline", interleaved),
        (run.mesh.data_parallel_size, "data", sharded),
    )
    return " x ".join(f"{name} {size}{how}" for size, name, how in sizes if size > 1)


def _run_line(run: Run, about: dict[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "config": run.config.to_dict(),
        "versions": about,
        "data": dict(run.task.fingerprints),
        "method": run.method.settings[METHOD],
        "method_settings": dict(run.method.settings),
        "num_steps": run.plan.num_steps,
        "resumed_at": run.progress.iteration,
    }
