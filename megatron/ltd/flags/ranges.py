"""The range of a flag that is a number, and ``Settings``, whose numbers are checked when it is made.

    num_layers: int = flag(24, range=Range(1, 4096), help="...")
    dropout: float = flag(0.1, range=SHARE, help="...")

Without ``range`` a whole number is at least 1 (``COUNT``), and a fraction at least 0 (``AMOUNT``). Upper ends are there
so that no sum or product of sizes overflows, and no loop over them is endless.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron.ltd.errors import UserError
from megatron.ltd.flags.fields import flag_fields, flag_name, value_type

_LARGE = 1 << 32
"""An upper end above this is left out of a message about the lower one."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; ``above`` and ``below`` exclude these two."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        is_high_enough = value > self.least if self.above else value >= self.least
        return is_high_enough and (value < self.most if self.below else value <= self.most)  # not so for NaN

    def rule(self, value: float) -> str:
        """The rule that ``value`` breaks, such as "it must be at least 1"."""
        low = f"{'above' if self.above else 'at least'} {_number(self.least)}"
        high = f"{'below' if self.below else 'at most'} {_number(self.most)}"
        if self.most <= _LARGE:
            return f"it must be {low} and {high}"
        return f"it must be {low if value <= self.least else high}"


COUNT = Range(1, 1 << 53)
COUNT_OR_ZERO = Range(0, 1 << 53)
AMOUNT = Range(0, 1e18)
ABOVE_ZERO = Range(0, 1e18, above=True)
SHARE = Range(0, 1, below=True)
SIZE = Range(1, (1 << 31) - 1)
"""One dimension of a tensor."""
SEED = Range(0, (1 << 31) - 1)
LOSS_SCALE = Range(0, 2.0**127, above=True)


class Settings:
    """The base of dataclasses of flags.

    Raises ``UserError`` for a number that is out of its range, and for a required flag that is not given.
    """

    def __post_init__(self) -> None:
        config_class: Any = type(self)
        for field in flag_fields(self):
            allowed, value = range_of(config_class, field.name), getattr(self, field.name)
            if allowed is None or value is None:
                continue
            for number in value if isinstance(value, tuple) else (value,):
                if number not in allowed:
                    spelling = flag_name(config_class, field.name)
                    fix = "give a share such as 0.3" if allowed.most == 1 else "change it"
                    raise UserError(f"{spelling} {number}: {allowed.rule(number)}; {fix}")
        for field in flag_fields(self):
            if (fix := field.metadata["required"]) and getattr(self, field.name) in (None, "", ()):
                raise UserError(f"{flag_name(config_class, field.name)}: required; {fix}")


@cache
def range_of(config_class: type, name: str) -> Range | None:
    """The range of a flag by its field; None for text and switches."""
    kind, _ = value_type(_annotations(config_class)[name])
    default = {int: COUNT, float: AMOUNT}.get(kind)
    field = next(field for field in dataclasses.fields(config_class) if field.name == name)
    return default and (field.metadata["range"] or default)


@cache
def _annotations(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def count_in(text: str) -> int | None:
    """The whole number that ``text`` is; None for anything but a few ASCII digits."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
