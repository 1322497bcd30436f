"""Flags of a schedule of kept tokens, for every method that drops tokens, and the rules between them.

    growing     from the fewest tokens to all of them                  kept tokens, growth steps, granularity
    shrinking   from all tokens to the fewest, growing's mirror image  the same three
    constant    the same number at every step                          kept tokens
    staged      a list of "step:kept"                                  stages, granularity

A method's dataclass of flags inherits ``ScheduleFlags`` and so gets these flags under its own prefix. How many tokens a
schedule keeps at a step is in ``schedules.kept_tokens``. Without flags kept tokens start from a share of the sequence,
and grow over two thirds of the run, as docs/when-does-it-pay.md advises.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, field_id, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO
from megatron.ltd.methods.base import ModelFacts
from megatron.ltd.schedules.kept_tokens import (
    ConstantSchedule,
    KeptTokensSchedule,
    ShrinkingSchedule,
    StagedSchedule,
    TokenSchedule,
)

KINDS = ("growing", "constant", "shrinking", "staged")

GROWTH_SHARE = Fraction(2, 3)
"""Growth steps that are not given, as a share of the steps of the run."""

_STAGE = re.compile("([0-9]{1,18}):([0-9]{1,18})")
_HELP = {
    "schedule": "how the number of kept tokens changes during the run",
    "kept_tokens": "tokens kept of each sample: at step 0 (growing), at the end (shrinking) or always",
    "growth_steps": "steps until every token is kept (default: two thirds of the run), or the fewest (no default)",
    "granularity": "numbers of kept tokens that change are multiples of this; on GPUs multiples of 8 are fastest",
    "stages": "staged schedule: the first step, 0-based, and the kept tokens of each stage",
    "block_size": "draw blocks of this many neighbouring tokens (1: single tokens, as in the paper)",
    "strata": "split the sequence into this many equal parts, each of which keeps the same number of tokens",
}


class ScheduleFlags(Settings):
    """Adds the flags of a schedule to a method's dataclass of flags.

        @dataclass(frozen=True)
        class RandomLTDConfig(ScheduleFlags, prefix="ltd", kept="min_kept_tokens", kept_part=4): ...

    has ``ltd_schedule``, ``ltd_min_kept_tokens``, ``ltd_growth_steps`` and so on as fields and flags, after the class's
    first field, which is the method's switch. By default the schedule is constant, or growing if growth steps are
    given; with ``kind`` it is that one. By default one token in ``kept_part`` is kept.
    """

    growth: ClassVar[str]
    """The name of the field of growth steps."""
    _prefix: ClassVar[str]
    _kept: ClassVar[str]
    _kept_part: ClassVar[int]

    def __init_subclass__(
        cls,
        *,
        prefix: str,
        kept: str = "kept_tokens",
        kind: str | None = None,
        kept_part: int = 2,
        only_with: str = "",
    ) -> None:
        """``kept`` is the name of the flag of kept tokens; ``only_with`` says when blocks can be drawn."""
        super().__init_subclass__()
        cls._prefix, cls._kept, cls._kept_part = prefix, kept, kept_part
        cls.growth = f"{prefix}_growth_steps"
        switch, *others = cls.__annotations__.items()
        cls.__annotations__ = dict([switch])
        chosen = "" if kind else " (default: constant; growing if growth steps are given)"
        cls._add("schedule", "str" if kind else "str | None", kind, f"{_HELP['schedule']}{chosen}", choices=KINDS)
        cls._add(kept, "int | None", None, f"{_HELP['kept_tokens']} (default: 1/{kept_part} of them)")
        cls._add("growth_steps", "int | None", None, _HELP["growth_steps"], range=COUNT_OR_ZERO)
        cls._add("granularity", "int", 16, _HELP["granularity"])
        cls._add("stages", "tuple[str, ...]", (), _HELP["stages"], metavar="STEP:KEPT")
        cls._add("block_size", "int", 1, f"{only_with}{_HELP['block_size']}")
        cls._add("strata", "int", 1, _HELP["strata"])
        cls.__annotations__ |= dict(others)

    @classmethod
    def _add(cls, name: str, annotation: str, default: Any, text: str, **more: Any) -> None:
        """Add a flag to the class, before it becomes a dataclass."""
        cls.__annotations__[f"{cls._prefix}_{name}"] = annotation
        setattr(cls, f"{cls._prefix}_{name}", flag(default, affects="schedule", help=text, **more))

    def _given(self, name: str) -> Any:
        return getattr(self, f"{self._prefix}_{name}")

    @property
    def grows(self) -> bool:
        """Whether the number of kept tokens grows if growth steps are given."""
        return self._given("schedule") in (None, "growing")

    @property
    def _kind(self) -> str:
        return self._given("schedule") or ("constant" if self._given("growth_steps") is None else "growing")

    @property
    def follows_length(self) -> bool:
        """Whether the growth steps follow from the length of the run."""
        return self._kind == "growing" and self._given("growth_steps") is None

    def schedule_choice(self, facts: ModelFacts) -> ScheduleChoice:
        """The schedule that the flags ask for, not yet checked."""
        dashed = self._prefix.replace("_", "-")
        growth_steps = self._given("growth_steps")
        if self.follows_length and facts.num_steps is not None:
            growth_steps = max(1, int(GROWTH_SHARE * facts.num_steps))
        return ScheduleChoice(
            prefix=f"--{dashed}",
            kept_flag=f"--{dashed}-{self._kept.replace('_', '-')}",
            kind=self._kind,
            kept_tokens=self._given(self._kept),
            default_kept_tokens=self._default_kept_tokens(facts.seq_length),
            growth_steps=growth_steps,
            granularity=self._given("granularity"),
            stages=self._given("stages"),
            strata=self._given("strata"),
            block_size=self._given("block_size"),
        )

    def _default_kept_tokens(self, seq_length: int) -> int:
        """The default share of the sequence, in whole granularities if the number changes."""
        share, unit = seq_length // self._kept_part, 1 if self._kind == "constant" else self._given("granularity")
        return max(1, share if unit < 1 else max(1, share // unit) * unit)


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
        if size < 1:
            raise UserError(f"{asked}: must be at least 1, which draws single tokens")
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
        if strata < 1 or facts.seq_length % strata or amount % strata:
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


def in_blocks(block_size: int) -> str:
    """What a method's name adds if it draws blocks: " in blocks of 16", or nothing for single tokens."""
    return f" in blocks of {block_size}" if block_size > 1 else ""


def _nearest_divisors(number: int, whole: int) -> str:
    """The divisors of ``whole`` on both sides of ``number``, for example "8 or 16"."""
    small = [divisor for divisor in range(1, math.isqrt(whole) + 1) if whole % divisor == 0]
    divisors = sorted({*small, *(whole // divisor for divisor in small)})
    place = bisect_left(divisors, number)
    return " or ".join(f"{divisor}" for divisor in divisors[max(0, place - 1) : place + 1])
