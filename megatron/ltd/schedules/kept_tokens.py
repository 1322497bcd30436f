"""Kept tokens of a routed layer at each step: growing, shrinking, constant, or as a list of stages says.

    growing                      shrinking              constant               staged
    s  |         ________        s  |*                  s  |                   s  |          ________
       |       __|                  |  *__                 |                      |____|
       |    __|                     |     *__              |______________        |    |
    r0 |___|                     r0 |        *_____        |                      |    |_____|
       +---------|--- step          +--------|--- step     +-------------- step   +---------------- step
                 T                           T

Schedules are pure functions of the 0-based step: nothing to store, nothing to restore. They know neither layers'
weights nor batch sizes (``plan.run_plan``), nor what a kept token costs (``plan.accounting``). Which of them a run
follows is for flags to say (``methods.schedule_flags``). No torch here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Protocol

from megatron.ltd.errors import UserError


class TokenSchedule(Protocol):
    """Kept tokens of a routed layer at every step."""

    def at(self, step: int) -> int:
        """Kept tokens at the 0-based ``step``."""
        ...

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """Runs of equal kept tokens over the first ``num_steps`` steps: ``(first_step, num_steps, kept_tokens)``.

        In order, without gaps, covering exactly ``num_steps``; two neighbours differ. The bounds are computed, not
        searched: a huge ``num_steps`` costs nothing.
        """
        ...


def check_kept_tokens(given: str, kept_tokens: int, seq_length: int, seq_length_name: str) -> None:
    """Raise ``UserError`` for kept tokens outside 1 to S; ``given`` is what the user typed, flag and value."""
    if seq_length < 1:
        raise UserError(f"--seq-length {seq_length}: a sample has at least one token; give 1 or more")
    if kept_tokens < 1:
        raise UserError(f"{given}: a layer keeps at least one token; give 1 or more")
    if kept_tokens > seq_length:
        raise UserError(
            f"{given} is above {seq_length_name} {seq_length}: "
            f"a layer cannot keep more tokens than there are; give at most {seq_length}"
        )


@dataclass(frozen=True)
class KeptTokensSchedule:
    """Kept tokens growing linearly with the step, in whole granularities.

        at(t) = min_kept_tokens + floor((seq_length - min_kept_tokens) * t / growth_steps), rounded down to a multiple
                of the granularity, for t < growth_steps; exactly seq_length from then on

    With ``growth_steps`` 0 every token is kept from the first step. All arithmetic is on integers.
    Source: random-LTD (Yao et al., 2022), its linear schedule ("MSLG").

    Args:
        min_kept_tokens: tokens a layer keeps at step 0; a multiple of the granularity.
        seq_length: tokens of a whole sample; need not be a multiple of the granularity (197 patches with 8 is fine).
        growth_steps: the step from which every token is kept.
        granularity: kept tokens below seq_length are multiples of this.
        flags: what the user calls min_kept_tokens, growth_steps and granularity.
        seq_length_name: what the user calls seq_length.

    Raises:
        UserError: a value out of range, or min_kept_tokens that is not a multiple of the granularity.
    """

    min_kept_tokens: int
    seq_length: int
    growth_steps: int
    granularity: int
    flags: tuple[str, str, str] = ("--ltd-min-kept-tokens", "--ltd-growth-steps", "--ltd-granularity")
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        check_kept_tokens(
            f"{self.flags[0]} {self.min_kept_tokens}", self.min_kept_tokens, self.seq_length, self.seq_length_name
        )
        if self.growth_steps < 0:
            raise UserError(
                f"{self.flags[1]} {self.growth_steps}: growth takes a number of steps; give 1 or more, "
                "or 0 to keep every token from the first step"
            )
        if self.granularity < 1:
            raise UserError(f"{self.flags[2]} {self.granularity}: kept tokens grow in whole steps; give 1 or more")
        if self.min_kept_tokens % self.granularity:
            below = self.min_kept_tokens // self.granularity * self.granularity
            fixes = [f"{kept}" for kept in (below, below + self.granularity) if 1 <= kept <= self.seq_length]
            raise UserError(
                f"{self.flags[2]} {self.granularity} does not divide {self.flags[0]} {self.min_kept_tokens}: "
                f"the schedule would go below it; give {' or '.join([*fixes, 'a granularity that divides it'])}"
            )

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        if step >= self.growth_steps:
            return self.seq_length
        grown_tokens = (self.seq_length - self.min_kept_tokens) * step // self.growth_steps
        return (self.min_kept_tokens + grown_tokens) // self.granularity * self.granularity

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: K tokens are first kept at step ceil((K - r0) * T / (s - r0))."""
        levels = range(self.min_kept_tokens, self.seq_length, self.granularity) if self.growth_steps else range(0)
        range_tokens = self.seq_length - self.min_kept_tokens
        for kept_tokens in levels:
            grown_tokens = kept_tokens - self.min_kept_tokens
            first_step = -(-grown_tokens * self.growth_steps // range_tokens)
            next_tokens = min(grown_tokens + self.granularity, range_tokens)
            next_first_step = -(-next_tokens * self.growth_steps // range_tokens)
            if first_step >= num_steps:
                return
            if next_first_step > first_step:
                yield first_step, min(next_first_step, num_steps) - first_step, kept_tokens
        first_full_step = self.growth_steps if levels else 0
        if first_full_step < num_steps:
            yield first_full_step, num_steps - first_full_step, self.seq_length

    def total_kept_tokens(self, num_steps: int) -> int:
        """Sum of ``at(step)`` over the first ``num_steps`` steps: a routed layer's tokens at one sample a step."""
        return sum(stage_steps * kept_tokens for _, stage_steps, kept_tokens in self.stages(num_steps))


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
