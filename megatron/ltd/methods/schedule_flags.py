"""The schedule of kept tokens that a method's flags ask for, growing, constant, shrinking or staged, and its blocks.

    growing     from the fewest to all of them over so many steps      kept tokens, growth steps, granularity
    shrinking   from all to the fewest, growing's mirror image         the same three
    constant    as many at every step                                  kept tokens
    staged      as a list of "step:kept" says                          stages, granularity

Every method that drops tokens has these flags under its own prefix; the rules between them are here, once. What a
schedule keeps at a step is not (``schedules.kept_tokens``).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.flags import field_id
from megatron.ltd.methods.base import ModelFacts
from megatron.ltd.schedules.kept_tokens import (
    ConstantSchedule,
    KeptTokensSchedule,
    ShrinkingSchedule,
    StagedSchedule,
    TokenSchedule,
)

KINDS = ("growing", "constant", "shrinking", "staged")

_STAGE = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class ScheduleFlags:
    """What the user asks for, and how the method spells it: ``kept_flag``, and ``prefix`` before the other names."""

    prefix: str
    kept_flag: str
    kind: str
    """One of ``KINDS``."""
    kept_tokens: int | None
    default_kept_tokens: int
    """Where none are given."""
    growth_steps: int | None
    granularity: int
    stages: tuple[str, ...]
    strata: int
    block_size: int
    """Neighbouring tokens of a block, of which all or none are kept; 1 for single tokens."""

    def build(self, facts: ModelFacts) -> TokenSchedule:
        """The schedule. Raises ``UserError`` for flags that disagree with each other or with the model."""
        self._check_flags_used()
        kept_tokens = self.default_kept_tokens if self.kept_tokens is None else self.kept_tokens
        schedule = self._schedule(kept_tokens, facts)
        self._check_blocks(facts, kept_tokens)
        self._check_strata(facts, kept_tokens)
        return schedule

    @property
    def settings(self) -> Mapping[str, Any]:
        """By id, what decides the schedule, the strata and the blocks; None for what it has no use for."""
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
        """The stages one by one, also those of a list in quotes."""
        return " ".join(self.stages).split()

    def _schedule(self, kept_tokens: int, facts: ModelFacts) -> TokenSchedule:
        seq_length, name = facts.seq_length, facts.seq_length_name
        if self.kind == "constant":
            return ConstantSchedule(kept_tokens, seq_length, self.kept_flag, name)
        if self.kind == "staged":
            flags = (self._flag("stages"), self._flag("granularity"))
            return StagedSchedule(self._starts(), seq_length, self.granularity, flags, name)
        assert self.growth_steps is not None, "checked before"
        changing = KeptTokensSchedule if self.kind == "growing" else ShrinkingSchedule
        spelled = (self.kept_flag, self._flag("growth-steps"), self._flag("granularity"))
        return changing(kept_tokens, seq_length, self.growth_steps, self.granularity, spelled, name)

    def _flag(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _check_flags_used(self) -> None:
        """What the schedule needs is given, and what it has no use for is not."""
        asked = f"{self._flag('schedule')} {self.kind}"
        uses = (
            (self.kept_flag, self.kept_tokens, ("growing", "constant", "shrinking")),
            (self._flag("growth-steps"), self.growth_steps, ("growing", "shrinking")),
            (self._flag("stages"), " ".join(self._listed) or None, ("staged",)),
        )
        for flag, value, kinds in uses:
            if value is not None and self.kind not in kinds:
                raise UserError(
                    f"{flag} {value} says nothing to {asked}: leave it out, or take {self._flag('schedule')} "
                    f"{' or '.join(kinds)}"
                )
        if self.kind in ("growing", "shrinking") and self.growth_steps is None:
            until = "every token is" if self.kind == "growing" else "the fewest tokens are"
            raise UserError(
                f"{self._flag('growth-steps')} is missing: {asked} needs the number of steps until {until} kept"
            )
        if self.kind == "staged" and not self._listed:
            raise UserError(
                f"{self._flag('stages')} is missing: {asked} needs the first step and the kept tokens of each stage, "
                "such as 0:128 1000:256"
            )

    def _starts(self) -> tuple[tuple[int, int], ...]:
        starts = []
        for text in self._listed:
            match = _STAGE.fullmatch(text)
            if match is None:
                raise UserError(
                    f'{self._flag("stages")}: "{text}" is no stage; give "first step:kept tokens", such as 1000:256'
                )
            starts.append((int(match[1]), int(match[2])))
        return tuple(starts)

    def _kept_in_steps_of(self, kept_tokens: int) -> tuple[int, str]:
        """A number that divides the kept tokens of every step below S, and the flag that sets it."""
        if self.kind == "constant":
            return kept_tokens, self.kept_flag
        return self.granularity, self._flag("granularity")

    def _check_blocks(self, facts: ModelFacts, kept_tokens: int) -> None:
        """Blocks fill the sequence, or each run of it, and the kept tokens."""
        size, asked = self.block_size, f"{self._flag('block-size')} {self.block_size}"
        if size < 1:
            raise UserError(f"{asked}: a block has at least one token; give 1 for single tokens, or more")
        if size == 1:
            return
        if facts.seq_length % size:
            raise UserError(
                f"{asked} does not divide {facts.seq_length_name} {facts.seq_length}; give "
                f"{_nearest_divisors(size, facts.seq_length)}"
            )
        amount, what = self._kept_in_steps_of(kept_tokens)
        if amount % size:
            below = amount // size * size
            fixes = [f"{kept}" for kept in (below, below + size) if 1 <= kept <= facts.seq_length]
            raise UserError(
                f"{what} {amount} is not a multiple of {asked}: kept tokens come in whole blocks; give {what} "
                f"{' or '.join(fixes)}, or a block size that divides it"
            )
        if self.strata > 1 and (facts.seq_length % (self.strata * size) or amount % (self.strata * size)):
            raise UserError(
                f"{asked} and {self._flag('strata')} {self.strata}: each of the {self.strata} runs of the sequence "
                f"keeps whole blocks, so {self.strata * size} must divide {facts.seq_length_name} {facts.seq_length} "
                f"and {what} {amount}; give smaller blocks, or kept tokens in steps of {self.strata * size}"
            )

    def _check_strata(self, facts: ModelFacts, kept_tokens: int) -> None:
        """Each run of the sequence, and so each process, must keep the same whole number of tokens."""
        strata = self.strata
        amount, what = self._kept_in_steps_of(kept_tokens)
        if strata < 1 or facts.seq_length % strata or amount % strata:
            raise UserError(
                f"{self._flag('strata')} is {strata}: it must divide {facts.seq_length_name} {facts.seq_length} and "
                f"{what} {amount}, so that each run of the sequence keeps a whole share"
            )
        if strata % facts.sequence_runs:
            raise UserError(
                f"{self._flag('strata')} is {strata}: it must be a multiple of {facts.sequence_runs}, the runs that "
                "--sequence-parallel or --context-parallel-size cut the sequence in, so that every process keeps the "
                f"same number of tokens; use {facts.sequence_runs}"
            )


def in_blocks(block_size: int) -> str:
    """What a method's name adds for blocks: " in blocks of 16", or nothing for single tokens."""
    return f" in blocks of {block_size}" if block_size > 1 else ""


def _nearest_divisors(number: int, whole: int) -> str:
    """The divisors of ``whole`` on both sides of ``number``, such as "8 or 16"."""
    small = [divisor for divisor in range(1, math.isqrt(whole) + 1) if whole % divisor == 0]
    divisors = sorted({*small, *(whole // divisor for divisor in small)})
    place = bisect_left(divisors, number)
    return " or ".join(f"{divisor}" for divisor in divisors[max(0, place - 1) : place + 1])
