"""Kept tokens that do not grow: shrinking, constant, or as a list says. Siblings of ``schedules.KeptTokensSchedule``.

    shrinking              constant               staged
    s  |*                  s  |                   s  |          ________
       |  *__                 |                      |____
       |     *__              |______________        |    |
    r0 |        *_____        |                      |    |_____|
       +---------|--- step    +-------------- step   +---------------- step
                 T

Pure functions of the 0-based step. Which of them a run follows is for flags to say (``methods.schedule_flags``). No
torch here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter

from megatron.ltd.errors import UserError
from megatron.ltd.schedules import KeptTokensSchedule, check_kept_tokens


@dataclass(frozen=True)
class ShrinkingSchedule:
    """Kept tokens shrinking linearly: the growing schedule backwards, then as few as it starts with.

        at(t) = KeptTokensSchedule(...).at(shrink_steps - t) for t <= shrink_steps; min_kept_tokens from then on

    Every token is kept at step 0 and, where the sequence is longer than the minimum, at no other step. Arguments are
    those of ``KeptTokensSchedule``; ``shrink_steps``, 1 or more, is the step from which the fewest are kept.

    Raises:
        UserError: as ``KeptTokensSchedule``, and ``shrink_steps`` below 1.
    """

    min_kept_tokens: int
    seq_length: int
    shrink_steps: int
    granularity: int
    flags: tuple[str, str, str] = ("--ltd-min-kept-tokens", "--ltd-growth-steps", "--ltd-granularity")
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        if self.shrink_steps < 1:
            raise UserError(f"{self.flags[1]} {self.shrink_steps}: shrinking takes a number of steps; give 1 or more")
        _ = self._growing  # checks the rest

    @cached_property
    def _growing(self) -> KeptTokensSchedule:
        return KeptTokensSchedule(
            self.min_kept_tokens,
            self.seq_length,
            self.shrink_steps,
            self.granularity,
            self.flags,
            self.seq_length_name,
        )

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        return self._growing.at(max(0, self.shrink_steps - step))

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: the growing schedule's, last one first."""
        end_step = self.shrink_steps + 1
        for growing_first, steps, kept_tokens in reversed(list(self._growing.stages(end_step))):
            first_step = end_step - growing_first - steps
            if first_step >= num_steps:
                return
            steps = num_steps if growing_first == 0 else steps
            yield first_step, min(steps, num_steps - first_step), kept_tokens


@dataclass(frozen=True)
class ConstantSchedule:
    """As many kept tokens at every step. ``flag`` is what the user calls them. Raises ``UserError`` outside 1 to S."""

    kept_tokens: int
    seq_length: int
    flag: str = "--ltd-min-kept-tokens"
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        check_kept_tokens(f"{self.flag} {self.kept_tokens}", self.kept_tokens, self.seq_length, self.seq_length_name)

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        return self.kept_tokens

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: one."""
        if num_steps > 0:
            yield 0, num_steps, self.kept_tokens


@dataclass(frozen=True)
class StagedSchedule:
    """Kept tokens as a list says: ``(first step, kept tokens)`` of each stage; the last one has no end.

    Args:
        starts: from step 0 on, steps ascending; each multiple of the granularity, or seq_length, and other than the one
            before.
        seq_length: tokens of a whole sample.
        granularity: kept tokens below seq_length are multiples of this.
        flags: what the user calls starts and granularity.

    Raises:
        UserError: an empty list, or a stage that breaks a rule, named as "step:kept".
    """

    starts: tuple[tuple[int, int], ...]
    seq_length: int
    granularity: int
    flags: tuple[str, str] = ("--ltd-stages", "--ltd-granularity")
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        if self.granularity < 1:
            raise UserError(f"{self.flags[1]} {self.granularity}: kept tokens change in whole steps; give 1 or more")
        if not self.starts or self.starts[0][0] != 0:
            raise UserError(
                f"{self.flags[0]} {self._text() or 'is empty'}: the first stage starts at step 0; "
                'give one such as "0:128"'
            )
        before: tuple[int, int] | None = None
        for step, kept_tokens in self.starts:
            given = f"{self.flags[0]} {self._text()}: {step}:{kept_tokens}"
            if before is not None and step <= before[0]:
                raise UserError(
                    f"{given} does not start after the stage before it; give stages in order of their steps"
                )
            if before is not None and kept_tokens == before[1]:
                raise UserError(f"{given} keeps what the stage before it keeps; leave it out")
            check_kept_tokens(given, kept_tokens, self.seq_length, self.seq_length_name)
            if kept_tokens % self.granularity and kept_tokens != self.seq_length:
                raise UserError(
                    f"{given} keeps no multiple of {self.flags[1]} {self.granularity}; give a multiple, all "
                    f"{self.seq_length} tokens, or a granularity that divides it"
                )
            before = step, kept_tokens

    def _text(self) -> str:
        return " ".join(f"{step}:{kept_tokens}" for step, kept_tokens in self.starts)

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        return self.starts[bisect_right(self.starts, step, key=itemgetter(0)) - 1][1]

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: those of the list."""
        ends = [*(step for step, _ in self.starts[1:]), num_steps]
        for (first_step, kept_tokens), end_step in zip(self.starts, ends, strict=True):
            if first_step >= num_steps:
                return
            yield first_step, min(end_step, num_steps) - first_step, kept_tokens
