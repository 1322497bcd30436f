"""Which runs can have ``--cuda-graph-impl local``. No torch.

A graph repeats kernels, addresses and numbers (``layers.graphs``): every microbatch of a stage must compute a layer in
the same way, one microbatch after the other, and long enough. A capture of a layer takes W warm-up passes and one that
is recorded, and saves nothing by itself; with

    microbatches of a stage >= 10 (W + 1)

captures add at most a tenth to what a stage computes. A replay saves more than that where graphs are of use at all, for
layers that wait for their kernels to be launched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.ltd.errors import UserError
from megatron.ltd.methods import METHODS
from megatron.ltd.plan.run_plan import RunPlan

if TYPE_CHECKING:
    from megatron.ltd.config import RunConfig

_ASKED = "--cuda-graph-impl local"
PASSES_PER_CAPTURED_PASS = 10
"""Microbatches that a stage must compute for each pass of a capture."""


def check_graphs(config: RunConfig) -> None:
    """Raise ``UserError`` for flags that cannot be combined with graphs."""
    model, parallel = config.model, config.parallel
    if model.cuda_graph_impl == "none":
        if "cuda_graph_warmup_steps" in config.typed:
            raise UserError(
                f"--cuda-graph-warmup-steps {model.cuda_graph_warmup_steps}: it has no effect without {_ASKED}; add "
                "that, or drop the flag"
            )
        return
    if model.cuda_graph_impl == "transformer_engine":
        raise UserError(
            "--cuda-graph-impl transformer_engine: it captures layers once, before the first step, and kept tokens "
            f"change their number later; use {_ASKED}"
        )
    recompute, fp8 = config.recompute.recompute_granularity, config.precision.fp8_format
    reasons = {
        "--device cpu": (parallel.device == "cpu", "graphs are CUDA's; drop one of the two"),
        f"--recompute-granularity {recompute}": (
            recompute is not None,
            "recomputing sets random states from the host, which a graph cannot; drop one of the two",
        ),
        f"--fp8-format {fp8}": (fp8 is not None, "a graph would repeat the scales of its capture; drop one of the two"),
        "--gradient-accumulation-fusion": (
            bool(model.gradient_accumulation_fusion),
            "a graph returns the gradients of weights; drop the flag, which is off with graphs",
        ),
        "--ltd-kernels triton": (
            model.ltd_kernels == "triton",
            "its sums would be on both sides of a graph's end; use --ltd-kernels torch, which keeps the same tokens",
        ),
        f"--pipeline-model-parallel-size {parallel.pipeline_model_parallel_size}": (
            parallel.pipeline_model_parallel_size > 1,
            "a graph holds one microbatch, and a pipeline has several under way; use other parallelism",
        ),
        f"--context-parallel-size {parallel.context_parallel_size}": (
            parallel.context_parallel_size > 1,
            "attention over several processes is not captured; use other parallelism",
        ),
    }
    for entry_name, entry in METHODS.items():
        dropping_layers = entry.kind == "depth" and config.methods[entry_name].enabled
        reasons[entry.flag] = (dropping_layers, "it scales layers by another number in each step; drop one of the two")
    for flag, (is_given, why) in reasons.items():
        if is_given:
            raise UserError(f"{flag}: with {_ASKED} {why}")


def check_stages(config: RunConfig, plan: RunPlan, data_parallel_size: int) -> None:
    """Raise ``UserError`` if the plan changes more often than capturing graphs again pays. Without graphs do nothing.

    The last stage, however long, makes up for nothing: before it graphs would cost more than they save.
    """
    model, training = config.model, config.training
    if model.cuda_graph_impl != "local":
        return
    per_microbatch = training.micro_batch_size * data_parallel_size
    stages, steps, microbatches = 0, 0, 0
    last = plan.stages[-1].plan
    for before, stage in zip((None, *plan.stages), plan.stages, strict=False):
        if stage.plan.kept_tokens == last.kept_tokens:
            break
        stages += before is None or before.plan.kept_tokens != stage.plan.kept_tokens
        steps += stage.num_steps
        microbatches += stage.num_steps * stage.global_batch_samples // per_microbatch
    passes = model.cuda_graph_warmup_steps + 1
    needed = PASSES_PER_CAPTURED_PASS * passes
    if microbatches < needed * stages:
        raise UserError(
            f"{_ASKED}: the number of kept tokens changes every {steps / stages:.3g} steps, or "
            f"{microbatches / stages:.3g} microbatches, and capturing layers again, {passes} passes of each, pays from "
            f"{needed} microbatches on; use a larger granularity of the method or longer growth, or drop the flag"
        )
