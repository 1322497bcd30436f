"""Dataclass fields that are command-line flags: how they are made, spelled and shown."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from megatron.ltd.flags.ranges import Range

Affects = Literal["model", "order", "schedule", "numbers", "execution", "start", "nothing"]
"""What a flag changes in a training run.

    model      what the weights are: a run and its checkpoint must agree, always
    order      which sample comes when, and what is drawn for it: they must agree unless --finetune
    schedule   kept tokens, batch and learning rate over the run: they must agree, or the flags' are taken whole
    numbers    other parts of the result, such as weight decay or the length: may change, and is reported
    execution  how the result is computed, evaluated and checked: layout, kernels, recompute
    start      what one start loads, saves and prints, and when it exits
    nothing    nothing that other processes depend on, so it may differ between them: caches, log folders

A flag that changes several of these states the first. Three lists are made from it: what a continued run reports
(``checkpoint.compatibility``), what all processes must be given alike (``RunConfig.shared_flags``), and which changes
the report of a run mentions (``reports.page.notes``).
"""


def flag(
    default: Any,
    *,
    help: str,
    affects: Affects | None = None,
    name: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    range: Range | None = None,
    required: str | None = None,
) -> Any:
    """A dataclass field that is also a flag.

    ``name`` is the flag without dashes; by default the field's name with dashes for underscores, and for a switch that
    is on by default that name after ``no-``. The type comes from the annotation: ``int``, ``float``, ``str``, ``bool``,
    ``X | None`` or ``tuple[X, ...]`` (several values after one flag); ``bool | None`` is a pair of switches, the second
    with ``no-``, and None if neither is given. ``affects`` is stated by every flag of a command that trains, see
    ``Affects``; for the flags of other commands it is None. ``range`` is that of a number, by default ``COUNT`` or
    ``AMOUNT``; see ``ranges``. ``required`` says what to give, in the error of ``Settings`` without the flag.
    """
    metadata = {
        "help": help, "affects": affects, "name": name, "choices": choices, "metavar": metavar, "range": range,
        "required": required,
    }  # fmt: skip
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


def as_typed(default: Any, value: Any) -> Any:
    """A field's value as a flag's: for a switch whether it is given, for the switch with ``no-`` of a pair "off"."""
    if isinstance(default, bool):
        return value is not default
    return "off" if value is False else value


def shown(value: Any) -> str:
    """A flag's value in a message."""
    if value is None or value is False or value == () or value == []:
        return "not given"
    if value is True:
        return "given"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def value_type(annotation: Any) -> tuple[type, bool]:
    """The scalar type of an annotation, and whether several values follow the flag."""
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(annotation) is tuple:
        return typing.get_args(annotation)[0], True
    return annotation, False
