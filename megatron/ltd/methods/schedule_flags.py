"""Flags of a schedule of kept tokens, for every method that drops tokens.

    growing     from the fewest tokens to all of them                  kept tokens, growth steps, granularity
    shrinking   from all tokens to the fewest, growing's mirror image  the same three
    constant    the same number at every step                          kept tokens
    staged      a list of "step:kept"                                  stages, granularity

A method's dataclass of flags inherits ``ScheduleFlags`` and so gets these flags under its own prefix. The rules between
them are in ``schedule_choice``, and how many tokens a schedule keeps at a step in ``schedules.kept_tokens``. Without
flags kept tokens start from a share of the sequence, and grow over two thirds of the run, as
docs/when-does-it-pay.md advises.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import COUNT_OR_ZERO
from megatron.ltd.methods.base import ModelFacts
from megatron.ltd.methods.schedule_choice import KINDS, ScheduleChoice

GROWTH_SHARE = Fraction(2, 3)
"""Growth steps that are not given, as a share of the steps of the run."""

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
        unit = 1 if self._kind == "constant" else self._given("granularity")
        return max(1, seq_length // self._kept_part // unit) * unit
