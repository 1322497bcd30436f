"""Flags of every kind, and the command line that has them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.ltd.flags import FlagParser, add_flags, flag, read_flags


@dataclass(frozen=True)
class Kitchen:
    """kitchen

    Only the first line is the title.
    """

    num_cooks: int = flag(2, help="cooks, 50 % of them asleep")
    heat: float = flag(0.5, help="heat")
    dish: str = flag("soup", choices=("soup", "pie"), help="dish")
    name: str | None = flag(None, help="name")
    spices: tuple[str, ...] = flag((), help="spices")
    weights: tuple[float, ...] = flag((), help="weights")
    salt: bool = flag(True, help="without salt")
    window: bool = flag(True, name="shut-window", help="shut the window")
    lid: bool = flag(False, help="with a lid")
    no_fire: bool = flag(False, help="cold kitchen")
    lamp: bool | None = flag(None, help="lamp")
    guests: int | None = flag(None, help="guests")


def kitchen_parser() -> FlagParser:
    parser = FlagParser("about")
    add_flags(parser, Kitchen)
    return parser


def parse(*arguments: object) -> Kitchen:
    return read_flags(kitchen_parser().parse_args([str(word) for word in arguments]), Kitchen)
