"""What a run prints before its first step: what it is, what it will do, and what is unusual about it."""

from __future__ import annotations

from typing import Any

from megatron.ltd.format import format_count
from megatron.ltd.planner import stage_table
from megatron.ltd.training.run import Run, versions


def say_header(run: Run) -> None:
    """Print the header and write the run's first line in metrics.jsonl."""
    shape, plan, model = run.shape, run.plan, run.config.model
    parameters = sum(parameter.numel() for parameter in run.state.model.parameters())
    total = plan.num_steps
    about = versions(run.mesh)
    say = run.log.say
    say(
        f"model     {model.num_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.seq_length} tokens, vocabulary {shape.vocab_size}: {format_count(parameters)} parameters"
        + (" on this process" if run.mesh.world_size > 1 else "")
    )
    say(
        f"runs on   {about['device']}, {about['world_size']} process{'es' if run.mesh.world_size > 1 else ''}, "
        f"{run.config.precision.dtype}; torch {about['torch']}, megatron-core {about['megatron-core']}"
    )
    say(f"plan      {run.method.name}")
    say(stage_table(plan))
    if run.progress.iteration >= total:
        say(f"the run is already at step {run.progress.iteration} of {total}: nothing is left to do")
    last_kept = min(plan.stages[-1].kept_tokens_per_layer)
    if last_kept < shape.seq_length:
        say(
            f"warning: the run ends while layers still drop tokens (its last step keeps {last_kept} of "
            f"{shape.seq_length}), so "
            "the dense model is never trained as such: lengthen the run or shorten the growth"
        )
    run.log.run(_run_line(run, about))


def _run_line(run: Run, about: dict[str, Any]) -> dict[str, Any]:
    from megatron.ltd.data.datasets import check_sources

    sources = check_sources(run.config.data, run.tokenizer, read_tokens=False)
    return {
        "config": run.config.to_dict(),
        "versions": about,
        "data": {spelling: [info.fingerprint for info in infos] for spelling, infos in sources.items()},
        "method": run.method.name,
        "num_steps": run.plan.num_steps,
        "resumed_at": run.progress.iteration,
    }
