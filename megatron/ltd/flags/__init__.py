"""Dataclass fields that are command-line flags, and the arguments of a parser made from them.

Each folder of the project keeps its settings in a frozen dataclass beside the code that they configure. A field made
with ``flag`` carries its help, choices and spelling; ``add_flags`` turns the fields into argparse arguments, and
``read_flags`` turns the parsed values back into the dataclass. The field's default is the only default there is.

    @dataclass(frozen=True)
    class RandomLTDConfig(Settings):
        ltd_granularity: int = flag(16, help="kept tokens are a multiple of this")      # --ltd-granularity
        bias_linear: bool = flag(True, name="disable-bias-linear", help="...")          # a switch that turns it off
        rope_fusion: bool | None = flag(None, help="...")                              # --rope-fusion, --no-rope-fusion

``FlagParser`` (``flags/parser.py``) reads the command line and the files of ``--config`` (``flags/files.py``).

Not here: rules. ``Settings`` checks the range of each number (``flags/ranges.py``), each dataclass its other values,
and ``config.RunConfig`` what holds between them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import types
import typing
from typing import Any, TypeVar

from megatron.ltd.errors import UserError
from megatron.ltd.flags.fields import Affects as Affects
from megatron.ltd.flags.fields import as_typed, flag_fields, flag_name, shown, value_type
from megatron.ltd.flags.fields import field_id as field_id
from megatron.ltd.flags.fields import flag as flag
from megatron.ltd.flags.files import setting_line
from megatron.ltd.flags.parser import FlagParser as FlagParser
from megatron.ltd.flags.ranges import Settings as Settings

Config = TypeVar("Config")


def flag_values(config: object, but_affecting: Affects | None = None) -> dict[str, Any]:
    """Every flag of a config by its spelling: its value, or for a switch whether it is given.

    The value is "off" for ``no-`` of a pair of switches. Flags that affect ``but_affecting`` are left out.
    """
    return {
        flag_name(type(config), field.name): as_typed(field.default, getattr(config, field.name))
        for field in flag_fields(config)
        if but_affecting is None or field.metadata["affects"] != but_affecting
    }


def settings_lines(config: object, given: typing.Mapping[str, Any]) -> list[str]:
    """A config as lines of a settings file: the flags that were ``given``, by field, and other values as comments."""
    lines = [f"# {_title(type(config))}"]
    for field in flag_fields(config):
        name = flag_name(type(config), field.name).removeprefix("--")
        value = given.get(field.name, getattr(config, field.name))
        if field.default is not None:
            value = as_typed(field.default, value)
        if field.name in given:
            lines.append(setting_line(name, value))
        elif shown(value) != shown(None):
            lines.append(f"# {setting_line(name, value)}")
    return lines


def _title(config_class: type) -> str:
    return (config_class.__doc__ or config_class.__name__).strip().splitlines()[0]


def _finite(text: str) -> float:
    """A float flag's value; infinity and NaN are no values of any flag."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not a finite number; give one such as 0.1 or 3e-4")
    return value


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise argparse.ArgumentTypeError(
            f"{_short(text)} is longer than any number that a flag takes; give a smaller one"
        )
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give one such as 1000") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_NUMBER else f"{text[:_LONGEST_NUMBER]}...")


_LONGEST_NUMBER = 40
_READERS: dict[type, Any] = {float: _finite, int: _whole}
_SWITCHES: dict[bool | None, Any] = {
    True: "store_false", False: "store_true", None: argparse.BooleanOptionalAction
}  # fmt: skip
_METAVARS: dict[type, str] = {float: "X", int: "N", str: "TEXT"}


def add_flags(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add every flag of ``config_class`` to ``parser`` in a group titled by the first line of its docstring."""
    group = parser.add_argument_group(_title(config_class))
    annotations = typing.get_type_hints(config_class)
    for field in flag_fields(config_class):
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        kind, several = value_type(annotations[field.name])
        if kind is bool:
            options["action"] = _SWITCHES[typing.cast(bool | None, field.default)]
            default_text = ""
        else:
            reader = _READERS.get(kind, kind)
            choices, metavar = field.metadata["choices"], field.metadata["metavar"]
            if choices is None and metavar is None:
                metavar = _METAVARS[kind]
            options.update(type=reader, choices=choices, metavar=metavar)
            if several:
                options["nargs"] = "+"
            default_text = "" if field.default in (None, ()) else f" (default: {shown(field.default)})"
        options["help"] = (field.metadata["help"] + default_text).replace("%", "%%")
        group.add_argument(flag_name(config_class, field.name), **options)


def read_flags(namespace: argparse.Namespace, config_class: type[Config]) -> Config:
    """The dataclass with the values that were given; other fields keep their defaults."""
    values = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if hasattr(namespace, field.name):
            value = getattr(namespace, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def read_command(description: str | None, *config_classes: type) -> tuple[Any, ...]:
    """The settings that this program was called with, one object for each class. Raises ``UserError``."""
    parser = FlagParser(description)
    for config_class in config_classes:
        add_flags(parser, config_class)
    values = parser.parse_args()
    try:
        return tuple(read_flags(values, config_class) for config_class in config_classes)
    except UserError as error:
        raise parser.with_origin(error) from None


def from_record(values: typing.Mapping[str, Any], config_class: type[Config], source: str, part: str) -> Config:
    """The dataclass whose fields are stored in a file. Raises ``UserError`` for values that are not of their types."""
    annotations = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise UserError(
                f"{source}: this version does not know the {part} setting {name}; use the version that wrote it, or a "
                "newer one"
            )
        choices = fields[name].metadata.get("choices")
        if not _is_of(value, annotations[name]) or (choices is not None and value not in (*choices, None)):
            raise UserError(
                f"{source}: the {part} setting {name} has a value that it cannot have; use a file that this program "
                "wrote"
            )
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{source}: the {part} setting {name} is missing; use a file that this program wrote")
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _is_of(value: Any, annotation: Any) -> bool:
    """Whether a value read from JSON has this type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if origin is tuple:
        return type(value) is list and all(any(_is_of(item, kind) for kind in arguments) for item in value)
    if annotation is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is (type(None) if annotation is None else annotation)
