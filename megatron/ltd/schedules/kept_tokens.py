"""Schedules of kept tokens: how many tokens a routed layer computes at each step.

    growing                      shrinking              constant               staged
    s  |         ________        s  |*                  s  |                   s  |          ________
       |       __|                  |  *__                 |                      |____|
       |    __|                     |     *__              |______________        |    |
    r0 |___|                     r0 |        *_____        |                      |    |_____|
       +---------|--- step          +--------|--- step     +-------------- step   +---------------- step
                 T                           T

A schedule is a pure function of the 0-based step and has no state. Batch sizes are in ``plan.run_plan``, costs in
``plan.accounting``, and the flags that choose a schedule in ``methods.schedule_flags``. No torch here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Protocol

from megatron.ltd.errors import UserError

_MOST_CHANGES = 1 << 17
"""A plan has a stage for each number of kept tokens."""


class TokenSchedule(Protocol):
    """Kept tokens of a routed layer at every step."""

    def at(self, step: int) -> int:
        """Kept tokens at the 0-based ``step``."""
        ...

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """Ranges of the first ``num_steps`` steps with equal kept tokens: (first step, number of steps, kept tokens).

        In order, without gaps; two neighbours differ. The bounds are computed, not searched, so that the cost does not
        depend on ``num_steps``.
        """
        ...


def check_kept_tokens(given: str, kept_tokens: int, seq_length: int, seq_length_name: str) -> None:
    """Raise ``UserError`` for kept tokens outside 1 to S; ``given`` is the flag and its value."""
    if kept_tokens < 1:
        raise UserError(f"{given}: must be at least 1; a layer keeps at least one token")
    if kept_tokens > seq_length:
        raise UserError(f"{given}: is above {seq_length_name} {seq_length}; give at most {seq_length}")


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
        names: the names of min_kept_tokens, growth_steps and granularity in messages: a method's flags.
        seq_length_name: the name of seq_length in messages.

    Raises:
        UserError: min_kept_tokens outside 1 to seq_length, or not a multiple of the granularity, or too many changes.
    """

    min_kept_tokens: int
    seq_length: int
    growth_steps: int
    granularity: int
    names: tuple[str, str, str] = ("min_kept_tokens", "growth_steps", "granularity")
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        check_kept_tokens(
            f"{self.names[0]} {self.min_kept_tokens}", self.min_kept_tokens, self.seq_length, self.seq_length_name
        )
        if self.min_kept_tokens % self.granularity:
            below = self.min_kept_tokens // self.granularity * self.granularity
            fixes = [f"{kept}" for kept in (below, below + self.granularity) if 1 <= kept <= self.seq_length]
            raise UserError(
                f"{self.names[0]} {self.min_kept_tokens}: must be a multiple of {self.names[2]} {self.granularity}; "
                f"use {' or '.join([*fixes, 'a granularity that divides it'])}"
            )
        range_tokens = self.seq_length - self.min_kept_tokens
        if min(range_tokens // self.granularity, self.growth_steps) > _MOST_CHANGES:
            raise UserError(
                f"{self.names[2]} {self.granularity}: the number of kept tokens would change more than "
                f"{_MOST_CHANGES:,} times; use at least {-(-range_tokens // _MOST_CHANGES)}"
            )

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        if step >= self.growth_steps:
            return self.seq_length
        grown_tokens = (self.seq_length - self.min_kept_tokens) * step // self.growth_steps
        return (self.min_kept_tokens + grown_tokens) // self.granularity * self.granularity

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: K tokens are first kept at step ceil((K - r0) * T / (s - r0))."""
        range_tokens = self.seq_length - self.min_kept_tokens
        step, end_step = 0, min(num_steps, self.growth_steps if range_tokens else 0)
        while step < end_step:
            kept_tokens = KeptTokensSchedule.at(self, step)  # of the growing schedule, in a shrinking one too
            grown_tokens = min(kept_tokens + self.granularity - self.min_kept_tokens, range_tokens)
            next_step = min(-(-grown_tokens * self.growth_steps // range_tokens), num_steps)
            yield step, next_step - step, kept_tokens
            step = next_step
        if step < num_steps:
            yield step, num_steps - step, self.seq_length


@dataclass(frozen=True)
class ShrinkingSchedule(KeptTokensSchedule):
    """Kept tokens shrinking linearly: the growing schedule backwards, then its smallest number.

        at(t) = KeptTokensSchedule(...).at(growth_steps - t) for t <= growth_steps; min_kept_tokens from then on

    Every token is kept at step 0 and, unless the minimum is the sequence length, at no other step.

    Raises:
        UserError: as ``KeptTokensSchedule``, and ``growth_steps`` 0.
    """

    def __post_init__(self) -> None:
        if not self.growth_steps:
            raise UserError(f"{self.names[1]} 0: must be at least 1 for a shrinking schedule")
        super().__post_init__()

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        return super().at(max(0, self.growth_steps - step))

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: the growing schedule's, last one first."""
        end_step = self.growth_steps + 1
        for growing_first, steps, kept_tokens in reversed(list(super().stages(end_step))):
            first_step = end_step - growing_first - steps
            if first_step >= num_steps:
                return
            steps = num_steps if growing_first == 0 else steps
            yield first_step, min(steps, num_steps - first_step), kept_tokens


@dataclass(frozen=True)
class ConstantSchedule:
    """The same number of kept tokens at every step; raises ``UserError`` outside 1 to S. ``name``: for messages."""

    kept_tokens: int
    seq_length: int
    name: str = "kept_tokens"
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        check_kept_tokens(f"{self.name} {self.kept_tokens}", self.kept_tokens, self.seq_length, self.seq_length_name)

    def at(self, step: int) -> int:
        """Kept tokens of a routed layer at the 0-based ``step``."""
        return self.kept_tokens

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """As ``TokenSchedule``: one."""
        if num_steps > 0:
            yield 0, num_steps, self.kept_tokens


@dataclass(frozen=True)
class StagedSchedule:
    """Kept tokens of a list of stages, ``(first step, kept tokens)`` each; the last stage has no end.

    Args:
        starts: the stages, the first at step 0, steps ascending; kept tokens are a multiple of the granularity or
            seq_length, and differ from those of the stage before.
        seq_length: tokens of a whole sample.
        granularity: kept tokens below seq_length are multiples of this.
        names: the names of starts and granularity in messages.

    Raises:
        UserError: an empty list, or a stage that breaks a rule, given as "step:kept".
    """

    starts: tuple[tuple[int, int], ...]
    seq_length: int
    granularity: int
    names: tuple[str, str] = ("stages", "granularity")
    seq_length_name: str = "--seq-length"

    def __post_init__(self) -> None:
        if not self.starts or self.starts[0][0] != 0:
            raise UserError(
                f"{' '.join([self.names[0], *self._listed()])}: the first stage must start at step 0, for example 0:128"
            )
        before: tuple[int, int] | None = None
        for step, kept_tokens in self.starts:
            given = f"{' '.join([self.names[0], *self._listed()])}: {step}:{kept_tokens}"
            if before is not None and step <= before[0]:
                raise UserError(
                    f"{given} does not start after the stage before it; give the stages in the order of their steps"
                )
            if before is not None and kept_tokens == before[1]:
                raise UserError(f"{given} keeps as many tokens as the stage before it; remove it")
            check_kept_tokens(given, kept_tokens, self.seq_length, self.seq_length_name)
            if kept_tokens % self.granularity and kept_tokens != self.seq_length:
                raise UserError(
                    f"{given} is not a multiple of {self.names[1]} {self.granularity}; use a multiple, all "
                    f"{self.seq_length} tokens, or a granularity that divides it"
                )
            before = step, kept_tokens

    def _listed(self) -> list[str]:
        return [f"{step}:{kept_tokens}" for step, kept_tokens in self.starts]

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
