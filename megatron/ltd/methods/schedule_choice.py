"""The schedule of kept tokens that flags choose, and a method that follows it.

Refuses flags that are missing, have no effect or do not fit.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import field_id
from megatron.ltd.methods.base import Method, ModelFacts
from megatron.ltd.schedules.kept_tokens import (
    ConstantSchedule,
    KeptTokensSchedule,
    ShrinkingSchedule,
    StagedSchedule,
    TokenSchedule,
)
from megatron.ltd.schedules.step_plan import StepPlan

KINDS = ("growing", "constant", "shrinking", "staged")

_STAGE = re.compile("([0-9]{1,18}):([0-9]{1,18})")


@dataclass(frozen=True)
class ScheduleChoice:
    """The values of ``ScheduleFlags``, and the names that messages use for them."""

    prefix: str
    kept_flag: str
    kind: str
    """One of ``KINDS``."""
    kept_tokens: int | None
    default_kept_tokens: int
    growth_steps: int | None
    granularity: int
    stages: tuple[str, ...]
    strata: int
    block_size: int
    """Neighbouring tokens that are kept or dropped together; 1 for single tokens."""

    def build(self, facts: ModelFacts) -> TokenSchedule:
        """The schedule. Raises ``UserError`` if flags contradict each other or do not fit the model."""
        self._check_flags_used()
        kept_tokens = self.default_kept_tokens if self.kept_tokens is None else self.kept_tokens
        schedule = self._schedule(kept_tokens, facts)
        self._check_blocks(facts, kept_tokens)
        self._check_strata(facts, kept_tokens)
        return schedule

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides the schedule, the strata and the blocks, by id; None for a value without effect."""
        kept_tokens = self.default_kept_tokens if self.kept_tokens is None else self.kept_tokens
        by_flag = {
            self._flag("schedule"): self.kind,
            self.kept_flag: None if self.kind == "staged" else kept_tokens,
            self._flag("growth-steps"): self.growth_steps,
            self._flag("granularity"): None if self.kind == "constant" else self.granularity,
            self._flag("stages"): " ".join(self._listed) or None,
            self._flag("strata"): self.strata,
            self._flag("block-size"): self.block_size if self.block_size > 1 else None,
        }
        return {field_id(spelling): value for spelling, value in by_flag.items()}

    @property
    def _listed(self) -> list[str]:
        """The stages one by one; a quoted list is split."""
        return " ".join(self.stages).split()

    def _schedule(self, kept_tokens: int, facts: ModelFacts) -> TokenSchedule:
        seq_length, name = facts.seq_length, facts.seq_length_name
        if self.kind == "constant":
            return ConstantSchedule(kept_tokens, seq_length, self.kept_flag, name)
        if self.kind == "staged":
            flags = (self._flag("stages"), self._flag("granularity"))
            return StagedSchedule(self._starts(), seq_length, self.granularity, flags, name)
        assert self.growth_steps is not None, "_check_flags_used requires it"
        changing = KeptTokensSchedule if self.kind == "growing" else ShrinkingSchedule
        spelled = (self.kept_flag, self._flag("growth-steps"), self._flag("granularity"))
        return changing(kept_tokens, seq_length, self.growth_steps, self.granularity, spelled, name)

    def _flag(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _check_flags_used(self) -> None:
        """Refuse a missing flag that the schedule needs, and a given one that would have no effect."""
        asked = f"{self._flag('schedule')} {self.kind}"
        uses = (
            (self.kept_flag, self.kept_tokens, ("growing", "constant", "shrinking")),
            (self._flag("growth-steps"), self.growth_steps, ("growing", "shrinking")),
            (self._flag("stages"), " ".join(self._listed) or None, ("staged",)),
        )
        for spelling, value, kinds in uses:
            if value is not None and self.kind not in kinds:
                raise UserError(
                    f"{spelling} {value}: has no effect with {asked}; remove it, or use {self._flag('schedule')} "
                    f"{' or '.join(kinds)}"
                )
        if self.kind in ("growing", "shrinking") and self.growth_steps is None:
            until = "the fewest tokens are kept"
            if self.kind == "growing":
                until = "every token is kept (default: two thirds of the run, if --train-iters or --global-batch-size"
                until = f"{until} is given)"
            raise UserError(f"{self._flag('growth-steps')}: required with {asked}; give the steps until {until}")
        if self.kind == "staged" and not self._listed:
            raise UserError(
                f"{self._flag('stages')}: required with {asked}; give the first step and the kept tokens of each "
                "stage, for example 0:128 1000:256"
            )

    def _starts(self) -> tuple[tuple[int, int], ...]:
        starts = []
        for text in self._listed:
            match = _STAGE.fullmatch(text)
            if match is None:
                raise UserError(
                    f"{self._flag('stages')} {text}: not a stage; give FIRST_STEP:KEPT_TOKENS, for example 1000:256"
                )
            starts.append((int(match[1]), int(match[2])))
        return tuple(starts)

    def _divisor_of_kept(self, kept_tokens: int) -> tuple[int, str]:
        """A number that divides the kept tokens of every step that drops tokens, and the flag that sets it."""
        if self.kind == "constant":
            return kept_tokens, self.kept_flag
        return self.granularity, self._flag("granularity")

    def _check_blocks(self, facts: ModelFacts, kept_tokens: int) -> None:
        """The sequence, each stratum of it and the kept tokens must be whole numbers of blocks."""
        size, asked = self.block_size, f"{self._flag('block-size')} {self.block_size}"
        if size == 1:
            return
        if facts.seq_length % size:
            raise UserError(
                f"{asked}: does not divide {facts.seq_length_name} {facts.seq_length}; use "
                f"{_nearest_divisors(size, facts.seq_length)}"
            )
        amount, what = self._divisor_of_kept(kept_tokens)
        if amount % size:
            below = amount // size * size
            fixes = [f"{kept}" for kept in (below, below + size) if 1 <= kept <= facts.seq_length]
            raise UserError(
                f"{what} {amount}: must be a multiple of {asked}, because whole blocks are kept; use "
                f"{' or '.join(fixes)}, or a block size that divides it"
            )
        if self.strata > 1 and (facts.seq_length % (self.strata * size) or amount % (self.strata * size)):
            raise UserError(
                f"{asked}: with {self._flag('strata')} {self.strata}, {self.strata * size} must divide "
                f"{facts.seq_length_name} {facts.seq_length} and {what} {amount}, because each stratum keeps whole "
                f"blocks; use smaller blocks, or multiples of {self.strata * size}"
            )

    def _check_strata(self, facts: ModelFacts, kept_tokens: int) -> None:
        """Each stratum, and so each process, must keep the same whole number of tokens."""
        strata = self.strata
        amount, what = self._divisor_of_kept(kept_tokens)
        if facts.seq_length % strata or amount % strata:
            raise UserError(
                f"{self._flag('strata')} {strata}: must divide {facts.seq_length_name} {facts.seq_length} and "
                f"{what} {amount}, so that each stratum keeps the same number of tokens; change one of them"
            )
        if strata % facts.sequence_parts:
            raise UserError(
                f"{self._flag('strata')} {strata}: must be a multiple of {facts.sequence_parts}, the parts into which "
                "--sequence-parallel or --context-parallel-size splits the sequence, so that every process keeps the "
                f"same number of tokens; use {facts.sequence_parts}"
            )


class FollowsSchedule(Method):
    """A method whose kept tokens follow a schedule; the plan of a step depends on their number alone."""

    title: ClassVar[str]
    schedule: TokenSchedule
    choice: ScheduleChoice

    @property
    def name(self) -> str:
        """The title, and the block size if blocks are drawn."""
        blocks = self.choice.block_size
        return self.title + (f" in blocks of {blocks}" if blocks > 1 else "")

    def plan(self, step: int) -> StepPlan:
        return self.plan_with(self.schedule.at(step))

    def stages(self, num_steps: int) -> Iterator[tuple[int, int, StepPlan]]:
        for first_step, steps, kept_tokens in self.schedule.stages(num_steps):
            yield first_step, steps, self.plan_with(kept_tokens)

    @abstractmethod
    def plan_with(self, kept_tokens: int) -> StepPlan:
        """The plan of a step with this many kept tokens."""


def _nearest_divisors(number: int, whole: int) -> str:
    """The divisors of ``whole`` on both sides of ``number``, for example "8 or 16"."""
    small = [divisor for divisor in range(1, math.isqrt(whole) + 1) if whole % divisor == 0]
    divisors = sorted({*small, *(whole // divisor for divisor in small)})
    place = bisect_left(divisors, number)
    return " or ".join(f"{divisor}" for divisor in divisors[max(0, place - 1) : place + 1])
