"""Dataclass fields that are command-line flags, and the parser made from them.

Each room of the project keeps its settings in a frozen dataclass beside the code they steer. A field made with
``flag`` carries its help, choices and spelling; ``add_flags`` turns the fields into argparse arguments and
``read_flags`` turns the parsed values back into the dataclass. The field's default is the only default there is.

    @dataclass(frozen=True)
    class RandomLTDConfig:
        ltd_granularity: int = flag(16, help="kept tokens are a multiple of this")      # --ltd-granularity
        bias_linear: bool = flag(True, name="disable-bias-linear", help="...")          # a switch that turns it off

``FlagParser`` answers a flag that it cannot read as every other mistake is answered: one line, as a ``UserError``.

Not here: rules. Each dataclass checks its own values, and ``config.RunConfig`` what holds between them.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

from megatron.ltd.errors import UserError

Config = TypeVar("Config")

Affects = Literal["model", "order", "schedule", "numbers", "execution", "start", "nothing"]
"""What of a training run another value of a flag changes.

    model      what the weights are: a run and its checkpoint must agree, always
    order      which sample comes when, and what is drawn for it: they must agree unless --finetune
    schedule   kept tokens, batch and learning rate over the run: they must agree, or the flags' are taken whole
    numbers    what else changes the result, such as weight decay or the length: may change, and is reported
    execution  how the same is computed, and how it is evaluated and checked: layout, kernels, recompute
    start      what one start loads, saves and prints, and when it leaves
    nothing    nothing that another process notices, so that it may differ between processes: caches, log folders

A flag that changes several of these states the first. Three lists are made from it: what a continued run reports
(``checkpoint.compatibility``), what all processes must be given alike (``RunConfig.shared_flags``), and which changes
the report of a run mentions (``reports.page.notes``).
"""


class FlagParser(argparse.ArgumentParser):
    """argparse with whole flag names only, whose errors are ``UserError``: one line, without the list of all flags."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            usage="%(prog)s [flags]",
            description=description,
            allow_abbrev=False,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=44, width=120),
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The flags' values. Raises ``UserError`` naming the flag, and for an unknown one those spelled most alike."""
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._about_unknown(unknown[0]))
        return values

    def error(self, message: str) -> NoReturn:
        """Raise argparse's ``message`` as a ``UserError``."""
        raise UserError(message.removeprefix("argument "))

    def _about_unknown(self, text: str) -> str:
        spelling = text.partition("=")[0]
        if not spelling.startswith("-"):
            return f"{text}: no flag takes this value; --help lists the flags and what each takes"
        alike = difflib.get_close_matches(spelling, self._option_string_actions, n=3, cutoff=0.7)
        return f"{spelling}: there is no such flag; " + (
            f"use {' or '.join(alike)}" if alike else "--help lists them all"
        )


def flag(
    default: Any,
    *,
    help: str,
    affects: Affects | None = None,
    name: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is also a flag.

    ``name`` is the flag without dashes; by default the field's name with dashes for underscores, and for a switch that
    is on by default that name after ``no-``. The type comes from the annotation: ``int``, ``float``, ``str``, ``bool``,
    ``X | None`` or ``tuple[X, ...]`` (several values after one flag). ``affects`` is stated by every flag of a command
    that trains, see ``Affects``; for the flags of other commands it is None.
    """
    metadata = {"help": help, "affects": affects, "name": name, "choices": choices, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def flag_fields(config_class: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a config, or of its class, that are flags."""
    return [field for field in dataclasses.fields(config_class) if "help" in field.metadata]


def field_id(spelling: str) -> str:
    """The name of the field behind a flag without a spelling of its own: ``"--ltd-strata"`` -> ``"ltd_strata"``."""
    return spelling.removeprefix("--").replace("-", "_")


def flag_name(config_class: type, field_name: str) -> str:
    """The flag of a field as the user types it, for error messages: ``flag_name(RandomLTDConfig, "ltd_strata")``."""
    field = next(field for field in dataclasses.fields(config_class) if field.name == field_name)
    if field.metadata["name"]:
        return f"--{field.metadata['name']}"
    dashed = field_name.replace("_", "-")
    return f"--no-{dashed}" if field.default is True else f"--{dashed}"


def flag_values(config: object, but_affecting: Affects | None = None) -> dict[str, Any]:
    """Every flag of a config by its spelling: its value, or for a switch whether it is given.

    Those that affect ``but_affecting`` are left out.
    """
    return {
        flag_name(type(config), field.name): _as_typed(field.default, getattr(config, field.name))
        for field in flag_fields(config)
        if but_affecting is None or field.metadata["affects"] != but_affecting
    }


def _as_typed(default: Any, value: Any) -> Any:
    return value is not default if isinstance(default, bool) else value


def shown(value: Any) -> str:
    """A flag's value in a message."""
    if value is None or value is False or value == () or value == []:
        return "not given"
    if value is True:
        return "given"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _value_type(annotation: Any) -> tuple[type, bool]:
    """The scalar type of an annotation, and whether several values follow the flag."""
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False


def _finite(text: str) -> float:
    """A float flag's value: no flag means anything at infinity or NaN."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number; give one such as 0.1 or 3e-4")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; give one such as 1000") from None


_READERS: dict[type, Any] = {float: _finite, int: _whole}
_METAVARS: dict[type, str] = {float: "X", int: "N", str: "TEXT"}


def add_flags(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add every flag of ``config_class`` to ``parser`` in a group titled by the first line of its docstring."""
    title = (config_class.__doc__ or config_class.__name__).strip().splitlines()[0]
    group = parser.add_argument_group(title)
    annotations = typing.get_type_hints(config_class)
    for field in flag_fields(config_class):
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        value_type, several = _value_type(annotations[field.name])
        if value_type is bool:
            options["action"] = "store_false" if field.default is True else "store_true"
            default_text = ""
        else:
            reader = _READERS.get(value_type, value_type)
            choices, metavar = field.metadata["choices"], field.metadata["metavar"]
            if choices is None and metavar is None:
                metavar = _METAVARS[value_type]
            options.update(type=reader, choices=choices, metavar=metavar)
            if several:
                options["nargs"] = "+"
            default_text = "" if field.default in (None, ()) else f" (default: {shown(field.default)})"
        options["help"] = (field.metadata["help"] + default_text).replace("%", "%%")
        group.add_argument(flag_name(config_class, field.name), **options)


def read_flags(namespace: argparse.Namespace, config_class: type[Config]) -> Config:
    """The dataclass holding what the user typed; what was not typed keeps the field's default."""
    values = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if hasattr(namespace, field.name):
            value = getattr(namespace, field.name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return config_class(**values)


def from_record(values: typing.Mapping[str, Any], config_class: type[Config], source: str, part: str) -> Config:
    """The dataclass that values out of a file are the fields of. Raises ``UserError`` for others."""
    annotations = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in fields:
            raise UserError(
                f"{source} holds the {part} setting {name}, which this version does not know: use the version that "
                "wrote it, or a newer one"
            )
        choices = fields[name].metadata.get("choices")
        if not _is_of(value, annotations[name]) or (choices is not None and value not in (*choices, None)):
            raise UserError(
                f"{source} holds a value of the {part} setting {name} that is none: take one that this program wrote"
            )
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{source} holds no {part} setting {name}: take one that this program wrote")
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _is_of(value: Any, annotation: Any) -> bool:
    """Whether a value out of JSON is one of a field with this type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, argument) for argument in arguments)
    if origin is tuple:
        return type(value) is list and all(any(_is_of(item, kind) for kind in arguments) for item in value)
    if annotation is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is (type(None) if annotation is None else annotation)
