"""Samples in the global batch of each step: constant, or growing over the first samples of the run.

    samples | start | + increment | + increment | ... | global batch ------>
            0                                         ramp samples

A pure function of the consumed samples, equal step by step to Megatron-Core's microbatch calculators, which cannot be
asked ahead of a run. No torch here, and no Megatron-Core.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron.ltd.errors import UserError

_MOST_CHANGES = 1 << 16


@dataclass(frozen=True)
class BatchRamp:
    """``--rampup-batch-size start increment samples``: the batch grows over the first samples of a run."""

    start_samples: int
    increment_samples: int
    ramp_samples: int


@dataclass(frozen=True)
class BatchSchedule:
    """Samples in the global batch of each step, equal to Megatron-Core's microbatch calculators.

    With a ramp of n increments in R samples the batch after c consumed samples is start + floor(c / (R / n)) *
    increment, and the full batch once c > R. The division is Megatron-Core's, in floating point: both round alike.

    Args:
        global_batch_samples: the full batch, over all data-parallel ranks.
        ramp: how the batch grows to it; None for the full batch from the first step.

    Raises:
        UserError: a ramp that does not grow, or does not land on the full batch.
    """

    global_batch_samples: int
    ramp: BatchRamp | None

    def __post_init__(self) -> None:
        if self.ramp is None:
            return
        start, increment, samples = self.ramp.start_samples, self.ramp.increment_samples, self.ramp.ramp_samples
        given = f"--rampup-batch-size {start} {increment} {samples}"
        if start >= self.global_batch_samples:
            raise UserError(
                f"{given}: the start must be below --global-batch-size {self.global_batch_samples}; lower it, or "
                "remove --rampup-batch-size"
            )
        if (self.global_batch_samples - start) % increment:
            raise UserError(
                f"{given}: increments of {increment} from {start} do not reach --global-batch-size "
                f"{self.global_batch_samples}; use an increment that divides {self.global_batch_samples - start}"
            )
        if (self.global_batch_samples - start) // increment > _MOST_CHANGES:
            raise UserError(f"{given}: the batch would grow more than {_MOST_CHANGES:,} times; use a larger increment")

    @property
    def sizes(self) -> Sequence[int]:
        """Every batch of the schedule, ascending [samples]."""
        ramp = self.ramp or BatchRamp(self.global_batch_samples, 1, 0)
        return range(ramp.start_samples, self.global_batch_samples + 1, ramp.increment_samples)

    def check_divisible(self, micro_batch_samples: int, data_parallel_size: int) -> None:
        """Refuse a batch of the schedule that does not split into whole microbatches on every data-parallel rank.

        Raises:
            UserError: naming the first such batch.
        """
        divisor = micro_batch_samples * data_parallel_size
        for batch_samples in self.sizes:
            if batch_samples % divisor:
                source = f"--global-batch-size {batch_samples}"
                if self.ramp is not None:
                    source = f"--rampup-batch-size: a batch of {batch_samples}"
                raise UserError(
                    f"{source}: must be a multiple of --micro-batch-size {micro_batch_samples} x {data_parallel_size} "
                    f"data-parallel processes; use multiples of {divisor}"
                )

    def at(self, consumed_samples: int) -> int:
        """The batch of the step after ``consumed_samples``."""
        ramp = self.ramp
        if ramp is None or consumed_samples > ramp.ramp_samples:
            return self.global_batch_samples
        num_increments = (self.global_batch_samples - ramp.start_samples) // ramp.increment_samples
        increments = int(consumed_samples / (ramp.ramp_samples / num_increments))
        return ramp.start_samples + increments * ramp.increment_samples

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """Ranges of steps with equal batches, of the first ``num_steps``: (first step, number of steps, samples)."""
        step, consumed_samples = 0, 0
        while step < num_steps:
            batch_samples = self.at(consumed_samples)
            if batch_samples == self.global_batch_samples or self.ramp is None:
                yield step, num_steps - step, batch_samples
                return
            stage_steps = self._steps_until_growth(consumed_samples)
            yield step, min(stage_steps, num_steps - step), batch_samples
            step += stage_steps
            consumed_samples += stage_steps * batch_samples

    def _steps_until_growth(self, consumed_samples: int) -> int:
        """Number of steps with the batch that follows ``consumed_samples``, which is not the full one."""
        assert self.ramp is not None
        batch_samples = self.at(consumed_samples)

        def has_grown(num_steps: int) -> bool:
            return self.at(consumed_samples + num_steps * batch_samples) != batch_samples

        # The batch never shrinks, and is larger after the ramp.
        in_ramp = range(1, (self.ramp.ramp_samples - consumed_samples) // batch_samples + 1)
        return 1 + bisect_left(in_ramp, True, key=has_grown)
