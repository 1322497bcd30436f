"""How long a run takes and what it costs, from a speed that the user gives.

    FLOPs a second = GPUs x peak x MFU                                            (--plan-mfu)
                   = FLOPs of a dense step at the full batch / its seconds        (--plan-step-seconds)

    seconds = FLOPs of the run / FLOPs a second         GPU-hours = seconds x GPUs / 3600

FLOPs are the useful FLOPs of ``plan.accounting``: recompute, pipeline bubbles and communication are part of the MFU, or
of the measured step. The MFU is taken as constant. Short sequences and small batches use a device less well than the
dense step, so the time of a run that drops tokens is a lower bound. Evaluation, checkpoints and start-up are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from megatron.ltd.errors import UserError
from megatron.ltd.forecast.config import FP8_TFLOPS, PEAK_TFLOPS, PlanConfig
from megatron.ltd.format import format_flops
from megatron.ltd.plan.accounting import ModelShape, dense_step_flops


@dataclass(frozen=True)
class Speed:
    """The speed of all GPUs of a run together."""

    num_gpus: int
    flops_per_second: float
    peak_flops: float | None
    """Of one GPU, per second; None if it is not known."""

    @classmethod
    def of(cls, planning: PlanConfig, dtype: str, num_gpus: int, shape: ModelShape, batch_samples: int) -> Speed | None:
        """The speed that the flags give; None if they give none. ``batch_samples``: samples of the full batch.

        Raises ``UserError`` for a peak of another type than ``dtype``, and for a step that is faster than the peak.
        """
        peak = planning.peak_flops(dtype)
        if planning.plan_mfu is not None:
            assert peak is not None, "checked with the flags"
            return cls(num_gpus, num_gpus * peak * planning.plan_mfu, peak)
        if planning.plan_step_seconds is not None:
            speed = cls(num_gpus, dense_step_flops(shape, batch_samples) / planning.plan_step_seconds, peak)
            speed.check_possible(planning, dtype)
            return speed
        return None

    def check_possible(self, planning: PlanConfig, dtype: str) -> None:
        """Raise ``UserError`` for a measured step above the peak given, or above that of every GPU known."""
        limit = self.peak_flops or max((FP8_TFLOPS if dtype == "float8" else PEAK_TFLOPS).values()) * 1e12
        reached = self.flops_per_second / self.num_gpus
        if reached > limit:
            whose = "of the GPU" if self.peak_flops else "of the fastest GPU known"
            raise UserError(
                f"--plan-step-seconds {planning.plan_step_seconds:g}: a dense step of this run on --plan-gpus "
                f"{self.num_gpus} would take {format_flops(reached)}/s of each, above the peak {whose}, "
                f"{format_flops(limit)}/s; give the GPUs, the batch and the model with which the step was measured"
            )

    @property
    def mfu(self) -> float | None:
        """Share of the peak that useful FLOPs reach."""
        return None if self.peak_flops is None else self.flops_per_second / (self.num_gpus * self.peak_flops)

    def seconds(self, flops: int) -> float:
        """The time for this many FLOPs."""
        return flops / self.flops_per_second

    def gpu_hours(self, flops: int) -> float:
        """The cost of this many FLOPs."""
        return self.seconds(flops) * self.num_gpus / 3600

    def flops_of(self, gpu_hours: float) -> int:
        """The FLOPs that this many GPU-hours pay for, rounded down."""
        return math.floor(Fraction(gpu_hours) * 3600 * Fraction(self.flops_per_second) / self.num_gpus)
