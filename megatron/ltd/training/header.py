"""What a run prints before its first step: what it is, what it will do, and what is unusual about it."""

from __future__ import annotations

from typing import Any

from megatron.ltd.format import format_count
from megatron.ltd.planner import stage_table
from megatron.ltd.training.run import Run, versions


def say_header(run: Run) -> None:
    """Print the header and write the run's first line in metrics.jsonl."""
    shape, plan, model = run.task.shape, run.plan, run.config.model
    total = plan.num_steps
    about = versions(run.mesh)
    say = run.log.say
    say(
        f"model     {model.num_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.seq_length} tokens, {run.task.outputs}: {format_count(run.task.num_parameters)} parameters"
    )
    say(
        f"runs on   {about['device']}, {about['world_size']} process{'es' if run.mesh.world_size > 1 else ''}, "
        f"{run.config.precision.dtype}; torch {about['torch']}, megatron-core {about['megatron-core']}"
    )
    if run.mesh.world_size > 1:
        say(f"layout    {_layout(run)}")
    say(f"plan      {run.method.name}")
    say(stage_table(plan))
    if run.progress.iteration >= total:
        say(f"the run is already at step {run.progress.iteration} of {total}: nothing is left to do")
    last_kept = plan.stages[-1].plan.min_kept_tokens
    if last_kept < shape.seq_length:
        say(
            f"warning: the run ends while layers still drop tokens (its last step keeps {last_kept} of "
            f"{shape.seq_length}), so it does not end on the dense model: let the kept tokens grow to all, shorten the "
            "growth or lengthen the run"
        )
    run.log.run(_run_line(run, about))


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
        "config": run.config.to_dict(),
        "versions": about,
        "data": dict(run.task.fingerprints),
        "method": run.method.name,
        "num_steps": run.plan.num_steps,
        "resumed_at": run.progress.iteration,
    }
