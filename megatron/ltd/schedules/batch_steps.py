"""A global batch that grows or shrinks at given numbers of tokens: ``--step-batch-size-schedule``.

    0:16 2.4B:320 12B:1536    16 samples from the start, 320 after 2.4 billion tokens, 1536 after 12 billion

Equal step by step to Megatron-Core's calculator. No torch here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron.ltd.errors import UserError
from megatron.ltd.schedules.batch_size import BatchSchedule

_FLAG = "--step-batch-size-schedule"
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class SteppedBatchSchedule(BatchSchedule):
    """The batch of the last entry of ``steps``, (first sample, batch) in order, that a run has reached."""

    steps: tuple[tuple[int, int], ...] = ()

    @property
    def sizes(self) -> Sequence[int]:
        """Every batch of the schedule, ascending [samples]."""
        return sorted({batch for _, batch in self.steps})

    def at(self, consumed_samples: int) -> int:
        """The batch of the step after ``consumed_samples``."""
        return self.steps[bisect_right(self.steps, consumed_samples, key=lambda step: step[0]) - 1][1]

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """Ranges of steps with equal batches: see ``BatchSchedule.stages``."""
        step, consumed_samples = 0, 0
        ends = [first for first, _ in self.steps[1:]]
        for (_, batch_samples), end in zip(self.steps, [*ends, None], strict=True):
            left = num_steps - step
            steps = left if end is None else min(left, max(0, -(-(end - consumed_samples) // batch_samples)))
            if steps:
                yield step, steps, batch_samples
            step += steps
            consumed_samples += steps * batch_samples


def read_batch_steps(entries: Sequence[str], seq_length: int) -> tuple[tuple[int, int], ...]:
    """The steps of the flag, (first sample, batch), for samples of ``seq_length`` tokens. Raises ``UserError``."""
    given = " ".join(entries).replace(",", " ").split()
    shown = f"{_FLAG} {' '.join(given)}"
    steps = []
    for entry in given:
        tokens, colon, batch = entry.partition(":")
        first, samples = _number(tokens), _number(batch)
        if not colon or first is None or samples is None or samples < 1:
            raise UserError(f"{shown}: {entry} is not TOKENS:SAMPLES, such as 2.4B:320")
        steps.append((first // seq_length, samples))
    if steps[0][0] != 0:
        raise UserError(f"{shown}: the first batch must begin at 0, such as 0:16")
    if any(later[0] <= earlier[0] for earlier, later in zip(steps, steps[1:], strict=False)):
        raise UserError(f"{shown}: each batch must begin at least one sample of {seq_length} tokens after the previous")
    return tuple(steps)


def _number(text: str) -> int | None:
    """A number of tokens or samples: digits, and K, M, B or T; None for anything else."""
    digits, unit = (text[:-1], _UNITS[text[-1].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    try:
        return int(Fraction(digits) * unit) if "/" not in digits and not digits.startswith("-") else None
    except ValueError:
        return None
