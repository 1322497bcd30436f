"""The complete training loop.

while steps are left:
    plan    what this step computes                      method.plan, a pure function of the step
            now and then: the same on all ranks?         routing_problem
    step    forward, backward, update                    Stepper.train, Method.observe
    count   samples and layer tokens of the plan         Progress
    clock   learning rate of the next step               scheduler, stepped by what was computed
    log     every step to metrics.jsonl                  RunLog
    then, when due: evaluate (with --eval-at-start also before the first step), score tasks, save, exit
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from megatron.ltd.data.config import TEST, VALID
from megatron.ltd.errors import RunStopped
from megatron.ltd.plan.accounting import dense_step_flops, layer_tokens, step_flops
from megatron.ltd.schedules.step_plan import StepPlan
from megatron.ltd.training.objective import mean_of_sets
from megatron.ltd.training.optimizer import evaluation_mode, weights_norm, whole_weights
from megatron.ltd.training.routing_check import routing_problem
from megatron.ltd.training.run import Run
from megatron.ltd.training.step import StepResult
from megatron.ltd.training.stopwatch import Stopwatch
from megatron.ltd.training.task_scores import Scorer

_LOWER_RATE = "a lower --lr and --override-opt-param-scheduler"
_SPIKE_WINDOW_STEPS = 100
_SPIKE_SETTLE_STEPS = 20


def train(run: Run, scorer: Scorer | None = None) -> str | None:
    """Train to the end, or until there is a reason to exit early, and save. Returns the reason, None at the end.

    ``scorer`` scores ``--eval-tasks``; see ``task_scores``. Raises ``RunStopped`` if the run diverges; the diverged
    state is not saved.
    """
    progress, scheduler = run.progress, run.state.scheduler
    recent_losses: deque[float] = deque(maxlen=_SPIKE_WINDOW_STEPS)
    skipped_scales: list[float] = []
    batches = closing(run.batches(run.train_data, progress.consumed_samples))
    reason: str | None = None
    first_step, check_routing_every = progress.iteration, run.config.parallel.check_routing_every
    if run.config.training.skip_train:
        evaluate(run)
        return "--skip-train is given"
    with run.exits.listening(), run.saver.finishing_saves(), run.upkeep.running(), batches as microbatches:
        if run.config.training.eval_at_start and progress.iteration == 0:
            evaluate(run)
        while progress.iteration < run.plan.num_steps and reason is None:
            watch = Stopwatch.start()
            samples = run.clock.batch.at(progress.consumed_samples)
            plan = run.method.plan(progress.iteration)
            lr = run.learning_rate
            run.upkeep.before_step(progress.iteration)
            if progress.iteration == first_step or _is_multiple(progress.iteration, check_routing_every or None):
                _stop_on(run, routing_problem(plan, run.method, run.mesh, progress, samples, run.state.learned_V))

            result = run.stepper.train(
                microbatches, plan, progress.iteration, run.microbatches_of(samples), run.state.learned_V
            )
            _stop_on(run, _divergence(run, result, recent_losses))
            run.state.learned_V = run.method.observe(run.state.learned_V, result.token_losses_2V)

            progress.count(samples, plan.seq_length, layer_tokens(plan, samples))
            if result.updated:
                scheduler.step(run.clock.increment(plan, samples))
                skipped_scales.clear()
            else:
                skipped_scales.append(result.loss_scale)

            times = watch.times(run.mesh.device.type, run.mesh.world_size)
            run.log.train(_record(run, plan, samples, result, lr, times))
            _stop_on(run, _stalled(run, skipped_scales))
            run.upkeep.after_step(progress.iteration)
            reason = run.exits.reason(progress.iteration)
            is_last = progress.iteration == run.plan.num_steps
            if _evaluate_when_due(run, scorer, is_last):
                reason = reason or run.exits.reason(progress.iteration)  # a signal during a long evaluation
            if is_last or reason is not None or _is_multiple(progress.iteration, run.config.checkpoint.save_interval):
                run.save()
            else:
                run.saver.poll()
    return reason


def _evaluate_when_due(run: Run, scorer: Scorer | None, is_last: bool) -> bool:
    """Evaluate the current weights and score them on tasks, each when it is due. Returns whether either was done."""
    iteration = run.progress.iteration
    evaluates = is_last or iteration % run.config.training.eval_interval == 0
    if evaluates:
        evaluate(run)
    if is_last:
        evaluate(run, TEST)
    if scorer is None or not run.config.scores.is_due(iteration, is_last=is_last):
        return evaluates
    with whole_weights(run.state.chunks), evaluation_mode(run.state.chunks):
        scores = scorer()
    if scores:
        run.log.scores(iteration, scores)
    return True


def evaluate(run: Run, what: str = VALID) -> dict[str, float]:
    """Evaluate the current weights on ``VALID`` or ``TEST`` data, and log the measures; empty if the run has no such
    data. Of several validation sets each has its own measures, "name/loss", and "loss" is the mean of theirs.
    """
    measures: dict[str, dict[str, float]] = {}
    for key, (data, samples) in run.eval_data.items():
        kind, _, name = key.partition("/")
        if kind == what:
            with evaluation_mode(run.state.chunks), closing(run.batches(data, 0)) as microbatches:
                measures[name] = run.stepper.evaluate(microbatches, run.microbatches_of(samples))
    found = measures[""] if "" in measures else mean_of_sets(measures)
    if found:
        run.log.evaluation("test" if what == TEST else "validation", run.progress.iteration, found)
    return found


def _record(
    run: Run, plan: StepPlan, samples: int, result: StepResult, lr: float, times: Mapping[str, Any]
) -> dict[str, Any]:
    """The line of a step in metrics.jsonl."""
    tokens = samples * plan.seq_length
    asked: dict[str, float] = {} if result.num_zeros is None else {"num_zeros": result.num_zeros}
    if run.config.logging.log_params_norm:
        asked["params_norm"] = weights_norm(run.state.optimizer)
    return {
        "iteration": run.progress.iteration,
        "loss": result.loss,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "loss_scale": result.loss_scale,
        "skipped_updates": int(not result.updated),
        "kept_tokens": plan.min_kept_tokens,
        "depth": _depth(run, plan, samples),
        "num_layers": len(plan.keep_probability),
        "batch_size": samples,
        "seq_length": plan.seq_length,
        "consumed_samples": run.progress.consumed_samples,
        "consumed_tokens": run.progress.consumed_tokens,
        "consumed_layer_tokens": run.progress.consumed_layer_tokens,
        "step_flops": step_flops(run.workload.shape, plan, samples),
        "dense_step_flops": dense_step_flops(run.workload.shape, samples),
        **times,
        **run.upkeep.memory(),
        "tokens_per_second": tokens / times["step_seconds"],
        **asked,
    }


def _depth(run: Run, plan: StepPlan, samples: int) -> float:
    """Mean number of layers computed per microbatch of the last step: as drawn, not the expected value."""
    step, microbatches = run.progress.iteration - 1, run.microbatches_of(samples)
    layers = enumerate(plan.keep_probability, start=1)
    drawn = [
        sum(run.method.executes(step, microbatch, layer_number, probability) for microbatch in range(microbatches))
        for layer_number, probability in layers
        if probability < 1.0
    ]
    return len(plan.keep_probability) - len(drawn) + sum(drawn) / microbatches


def _stop_on(run: Run, problem: str | None) -> None:
    """End the run if there is a problem, which all ranks agree on, once a pending checkpoint is written."""
    if problem is not None:
        run.saver.finish()
        raise RunStopped(problem)


def _divergence(run: Run, result: StepResult, recent_losses: deque[float]) -> str | None:
    """Why the run must end: a loss or gradient that is not finite, or a spike of the loss. None if it is fine."""
    flags, step = run.config.training, run.progress.iteration + 1
    if flags.check_for_nan_in_loss_and_grad:
        if not math.isfinite(result.loss):
            return (
                f"the loss of step {step} is {result.loss}; this step was not saved. Continue from the last checkpoint "
                f"with a lower --clip-grad, {_LOWER_RATE}, or --no-check-for-nan-in-loss-and-grad to skip such steps"
            )
        if result.updated and not math.isfinite(result.grad_norm):
            return (
                f"the gradient norm of step {step} is {result.grad_norm}; this step was not saved. Continue from the "
                f"last checkpoint with {_LOWER_RATE}"
            )
    if flags.check_for_spiky_loss:
        settled = len(recent_losses) >= _SPIKE_SETTLE_STEPS
        if settled and result.loss > flags.spiky_loss_factor * (usual := statistics.median(recent_losses)):
            return (
                f"the loss of step {step} is {result.loss:.4f}, above --spiky-loss-factor {flags.spiky_loss_factor} "
                f"times its recent median {usual:.4f}; this step was not saved. Continue from the last checkpoint with "
                f"{_LOWER_RATE}"
            )
        if math.isfinite(result.loss):
            recent_losses.append(result.loss)
    return None


def _stalled(run: Run, skipped_scales: list[float]) -> str | None:
    """Why the run must end after updates in a row were skipped, with these loss scales; None if it need not."""
    if len(skipped_scales) < run.config.training.max_skipped_updates:
        return None
    what = f"the last {len(skipped_scales)} updates were skipped"
    step = run.progress.iteration
    fix = f"Continue from the last checkpoint before them with {_LOWER_RATE}, or raise --max-skipped-updates"
    if not run.config.precision.fp16:
        return f"{what} until step {step}, because loss or gradients were not finite. {fix}"
    return (
        f"{what} until step {step}, because gradients overflowed in float16 with loss scales from "
        f"{skipped_scales[0]:g} to {skipped_scales[-1]:g}. {fix}, or use --bf16 from the start"
    )


def _is_multiple(iteration: int, interval: int | None) -> bool:
    return interval is not None and iteration % interval == 0
