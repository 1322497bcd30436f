"""How long a run is and how its learning rate falls, both on one clock.

The clock counts layer tokens (default), raw tokens or samples. A target in tokens means, on the layer-token clock,
layer tokens divided by layers: the "tokens" of the random-LTD paper, equal to raw tokens in a dense run.
Megatron-Core's ``OptimizerParamScheduler`` has no unit of its own; it is stepped by what each step really computed.

    --train-tokens T    steps until clock >= T x L         --lr-decay-tokens, --lr-warmup-tokens: the same unit
    --lr-decay-iters N  where the clock stands after N steps of the plan

A run continued with another method has consumed something else than its plan counts up to there; ``ahead`` is that
difference. No torch here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.methods.base import Method
from megatron.ltd.plan.accounting import ModelShape, layer_tokens
from megatron.ltd.plan.config import OptimizerConfig, TrainingConfig
from megatron.ltd.plan.run_plan import Clock, RunPlan, plan_run, plan_run_until
from megatron.ltd.schedules.batch_size import BatchRamp, BatchSchedule
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
"""By argument of ``OptimizerParamScheduler``, the id under which a checkpoint holds it. Lengths are on the clock."""


@dataclass(frozen=True)
class RunClock:
    """The plan of the run and where learning-rate horizons fall on its clock."""

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
        ramp = BatchRamp(*training.rampup_batch_size) if training.rampup_batch_size else None
        return cls(shape, BatchSchedule(global_batch_size, ramp), method, training, optimizer)

    @property
    def unit(self) -> Clock:
        return self.optimizer.lr_clock  # type: ignore[return-value]  # argparse allows these three

    def plan(self, iteration: int = 0, consumed: Mapping[Clock, int] | None = None) -> RunPlan:
        """The whole run, from step 0, as its length flag says; a continued run passes what it has ``consumed``."""
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
        """What one step adds to the clock."""
        tokens = samples * self.shape.seq_length
        return {"layer-tokens": layer_tokens(plan, samples), "tokens": tokens, "samples": samples}[self.unit]

    def schedule(self, iteration: int = 0, consumed: Mapping[Clock, int] | None = None) -> dict[str, Any]:
        """The learning-rate schedule as arguments of ``OptimizerParamScheduler``, its steps on this clock.

        Raises ``UserError`` if the warm-up is not shorter than the decay.
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
                f"the learning rate's warm-up ({warmup:,} {self.unit}) is not shorter than its decay ({decay:,}): "
                "lower "
                "--lr-warmup-*, or raise --lr-decay-* or the length of the run"
            )
        wsd_decay = self._final_decay(decay, ahead)
        if flags.lr_decay_style == "WSD" and wsd_decay is None:
            raise UserError(
                "--lr-decay-style is WSD: it needs the length of its final decay, such as --lr-wsd-decay-tokens"
            )
        if wsd_decay is not None and wsd_decay > decay - warmup:
            raise UserError(
                f"WSD's final decay ({wsd_decay:,} {self.unit}) does not fit between the warm-up ({warmup:,}) and "
                "the end of "
                f"the decay ({decay:,}): lower --lr-wsd-decay-*"
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
        """By id, all that decides how kept tokens, batch and learning rate go on; ``schedule`` as the one above.

        Two runs that agree here do the same from any step on, however their flags were spelled.
        """
        batch = {
            "global_batch_size": self.batch.global_batch_samples,
            "rampup_batch_size": list(self.training.rampup_batch_size),
        }
        rate = {SCHEDULE_IDS[name]: value for name, value in schedule.items()}
        return {**self.method.settings, **batch, "lr_clock": self.unit, **rate}

    def _horizon(self, name: str, ahead: int) -> int | None:
        """Where ``--<name>-iters``, ``-samples`` or ``-tokens`` falls on the clock; None if none is given."""
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
            if samples < self.batch.at(0):  # less than one step: none at all
                return 0
            plan = self._until(samples, "samples")
            return plan.clock(plan.num_steps, self.unit) + ahead
        return None

    def _final_decay(self, decay: int, ahead: int) -> int | None:
        """How long ``--lr-wsd-decay-*`` is on the clock; None if it is not given.

        Iterations and samples are the last before ``decay``: a step there is longer than one at the start, which keeps
        fewer tokens of fewer samples.
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
            raise UserError(f"{flag} is more than the learning rate's whole decay of {total} steps: lower it")
        return plan.clock(total, self.unit) - plan.clock(first, self.unit)

    def _until(self, target: int, unit: Clock) -> RunPlan:
        return plan_run_until(self.shape, self.batch, self.method.stages, target, unit)

    def _ahead(self, unit: Clock, iteration: int, consumed: Mapping[Clock, int] | None) -> int:
        """What the run has consumed beyond its plan's count up to ``iteration``; 0 if it followed the plan."""
        if not iteration or consumed is None:
            return 0
        done = plan_run(self.shape, self.batch, self.method.stages, iteration)
        return done.ahead(iteration, consumed[unit], unit)
