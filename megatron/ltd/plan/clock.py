"""The length of a run and its learning-rate schedule, both on one clock.

The clock counts layer tokens (default), raw tokens or samples. A target in tokens means, on the layer-token clock,
layer tokens divided by layers: the "tokens" of the random-LTD paper, equal to raw tokens in a dense run.
Megatron-Core's ``OptimizerParamScheduler`` has no unit of its own; it is stepped by what each step computes.

    --train-tokens T    steps until clock >= T x L         --lr-decay-tokens, --lr-warmup-tokens: the same unit
    --lr-decay-iters N  value of the clock after N steps of the plan

A run that is continued with another method has consumed more or less than its plan up to that step; ``ahead`` is the
difference. No torch here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.methods.base import Method
from megatron.ltd.plan.accounting import ModelShape
from megatron.ltd.plan.config import OptimizerConfig, TrainingConfig
from megatron.ltd.plan.run_plan import Clock, RunPlan, clock_of_step, plan_run, plan_run_until
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
from megatron.ltd.schedules.batch_steps import SteppedBatchSchedule, read_batch_steps
from megatron.ltd.schedules.step_plan import StepPlan

SCHEDULE_IDS = {
    "init_lr": "lr_warmup_init",
    "max_lr": "lr",
    "min_lr": "min_lr",
    "lr_warmup_steps": "lr_warmup_length",
    "lr_decay_steps": "lr_decay_length",
    "lr_decay_style": "lr_decay_style",
    "wsd_decay_steps": "lr_wsd_decay_length",
    "lr_wsd_decay_style": "lr_wsd_decay_style",
}
"""The id in checkpoints of each argument of ``OptimizerParamScheduler``. Lengths are in units of the clock."""


@dataclass(frozen=True)
class RunClock:
    """The plan of a run, and its learning-rate horizons on the clock."""

    shape: ModelShape
    batch: BatchSchedule
    method: Method
    training: TrainingConfig
    optimizer: OptimizerConfig

    @classmethod
    def build(
        cls,
        shape: ModelShape,
        global_batch_size: int,
        method: Method,
        training: TrainingConfig,
        optimizer: OptimizerConfig,
    ) -> RunClock:
        """Raises ``UserError`` for a batch ramp that does not reach the global batch."""
        if training.step_batch_size_schedule:
            steps = read_batch_steps(training.step_batch_size_schedule, shape.seq_length)
            if training.global_batch_size not in (None, steps[-1][1]):
                raise UserError(
                    f"--global-batch-size {global_batch_size}: --step-batch-size-schedule ends with a batch of "
                    f"{steps[-1][1]}; make them equal, or drop --global-batch-size"
                )
            return cls(shape, SteppedBatchSchedule(steps[-1][1], None, steps), method, training, optimizer)
        ramp = BatchRamp(*training.rampup_batch_size) if training.rampup_batch_size else None
        return cls(shape, BatchSchedule(global_batch_size, ramp), method, training, optimizer)

    @property
    def unit(self) -> Clock:
        return self.optimizer.lr_clock  # type: ignore[return-value]  # argparse allows these three

    def plan(self, iteration: int = 0, consumed: Mapping[Clock, int] | None = None) -> RunPlan:
        """The plan of the whole run, from step 0; a continued run passes what it has ``consumed``."""
        training = self.training
        if training.train_iters is not None:
            return plan_run(self.shape, self.batch, self.method.stages, training.train_iters)
        unit: Clock = "samples" if training.train_samples is not None else self.unit
        target = training.train_samples or self.from_tokens(training.train_tokens or 0)
        return self._until(target - self._ahead(unit, iteration, consumed), unit)

    def from_tokens(self, tokens: int) -> int:
        """A target in tokens on this clock: x L in layer tokens, / S in samples."""
        scale = {
            "layer-tokens": tokens * self.shape.num_layers,
            "tokens": tokens,
            "samples": tokens // self.shape.seq_length,
        }
        return scale[self.unit]

    def increment(self, plan: StepPlan, samples: int) -> int:
        """How much one step adds to the clock."""
        return clock_of_step(self.shape, plan, samples, self.unit)

    def schedule(self, iteration: int = 0, consumed: Mapping[Clock, int] | None = None) -> dict[str, Any]:
        """The learning-rate schedule as arguments of ``OptimizerParamScheduler``, its steps on this clock.

        Raises ``UserError`` if the warm-up or the final decay does not fit into the decay.
        """
        flags = self.optimizer
        ahead = self._ahead(self.unit, iteration, consumed)
        decay = self._horizon("lr_decay", ahead)
        if decay is None:
            plan = self.plan(iteration, consumed)
            decay = plan.clock(plan.num_steps, self.unit) + ahead
        warmup = self._horizon("lr_warmup", ahead) or 0
        if flags.lr_warmup_fraction is not None:
            warmup = int(flags.lr_warmup_fraction * decay)
        if warmup >= decay:
            raise UserError(
                f"--lr-warmup-*: the warm-up of {warmup:,} {self.unit} must be shorter than the decay of {decay:,}; "
                "lower it, or raise --lr-decay-* or the length of the run"
            )
        wsd_decay = self._final_decay(decay, ahead)
        if flags.lr_decay_style == "WSD" and wsd_decay is None:
            raise UserError(
                "--lr-decay-style WSD: needs the length of the final decay; give --lr-wsd-decay-tokens, -iters or "
                "-samples"
            )
        if wsd_decay is not None and wsd_decay > decay - warmup:
            raise UserError(
                f"--lr-wsd-decay-*: the final decay of {wsd_decay:,} {self.unit} does not fit between the warm-up of "
                f"{warmup:,} and the end of the decay at {decay:,}; lower it"
            )
        return {
            "init_lr": flags.lr_warmup_init,
            "max_lr": flags.lr,
            "min_lr": flags.min_lr,
            "lr_warmup_steps": warmup,
            "lr_decay_steps": decay,
            "lr_decay_style": flags.lr_decay_style,
            "wsd_decay_steps": wsd_decay,
            "lr_wsd_decay_style": flags.lr_wsd_decay_style,
        }

    def settings(self, schedule: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that decides kept tokens, batch and learning rate of the steps to come, by id.

        ``schedule`` is that of the method above. Two runs with equal settings do the same from any step on, even if
        they were started with different flags.
        """
        batch = {
            "global_batch_size": self.batch.global_batch_samples,
            "rampup_batch_size": list(self.training.rampup_batch_size),
            "step_batch_size_schedule": list(self.training.step_batch_size_schedule),
        }
        rate = {SCHEDULE_IDS[name]: value for name, value in schedule.items()}
        rate |= {name: getattr(self.optimizer, name) for name in ("decoupled_lr", "decoupled_min_lr")}
        return {**self.method.settings, **batch, "lr_clock": self.unit, **rate}

    def _horizon(self, name: str, ahead: int) -> int | None:
        """``--<name>-iters``, ``-samples`` or ``-tokens`` in units of the clock; None if none is given."""
        tokens, iters, samples = (getattr(self.optimizer, f"{name}_{unit}") for unit in ("tokens", "iters", "samples"))
        if tokens is not None:
            return self.from_tokens(tokens)
        if iters is not None:
            return (
                plan_run(self.shape, self.batch, self.method.stages, iters).clock(iters, self.unit) + ahead
                if iters
                else 0
            )
        if samples is not None:
            if samples < self.batch.at(0):  # less than one step
                return 0
            plan = self._until(samples, "samples")
            return plan.clock(plan.num_steps, self.unit) + ahead
        return None

    def _final_decay(self, decay: int, ahead: int) -> int | None:
        """The length of ``--lr-wsd-decay-*`` in units of the clock; None if it is not given.

        Iterations and samples are the last ones before the end of the decay, where a step is longer than at the start,
        because it keeps more tokens of more samples.
        """
        flags = self.optimizer
        if flags.lr_wsd_decay_tokens is not None:
            return self.from_tokens(flags.lr_wsd_decay_tokens)
        iters, samples = flags.lr_wsd_decay_iters, flags.lr_wsd_decay_samples
        if iters is None and samples is None:
            return None
        plan = self._until(decay - ahead, self.unit)
        total = plan.num_steps
        if iters is not None:
            flag, first = f"--lr-wsd-decay-iters {iters}", total - iters
        else:
            assert samples is not None
            flag, before = f"--lr-wsd-decay-samples {samples}", plan.samples(total) - samples
            first = bisect_left(range(total + 1), before, key=plan.samples) if before >= 0 else -1
        if first < 0:
            raise UserError(f"{flag}: is longer than the whole learning-rate decay of {total} steps; lower it")
        return plan.clock(total, self.unit) - plan.clock(first, self.unit)

    def _until(self, target: int, unit: Clock) -> RunPlan:
        return plan_run_until(self.shape, self.batch, self.method.stages, target, unit)

    def _ahead(self, unit: Clock, iteration: int, consumed: Mapping[Clock, int] | None) -> int:
        """See ``RunPlan.ahead``; 0 for a run that starts."""
        if not iteration or consumed is None:
            return 0
        done = plan_run(self.shape, self.batch, self.method.stages, iteration)
        return done.ahead(iteration, consumed[unit], unit)
