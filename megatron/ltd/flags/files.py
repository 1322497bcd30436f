"""Settings in YAML files: what ``--config FILE`` reads, and what a run writes as ``config.yaml``.

    model:                          # a heading groups settings and means nothing else
      num-layers: 24                # a flag without its dashes; - and _ are the same
      random-ltd: true              # a switch is true or false
    data-path: [0.7, a, 0.3, b]     # a flag that takes several values

A value is text for its flag to read, exactly as if it were typed: ``1e-3`` is a number, and ``010`` is ten.
``flags/yaml_tree.py`` reads the files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from megatron.ltd.errors import UserError
from megatron.ltd.flags.unknown import about_unknown
from megatron.ltd.flags.yaml_tree import SWITCH, Group, Node, Text, Values, read_tree, refuse


@dataclass(frozen=True)
class Setting:
    """The value that files give a flag, and where: ``FILE:LINE``."""

    value: Any
    where: str


def read_settings(
    files: Sequence[str], flags: Mapping[str, argparse.Action], others: Mapping[str, argparse.Action] | None = None
) -> tuple[dict[str, Setting], dict[str, list[str]]]:
    """What ``files`` set, by the ``dest`` of the flags, and words for the command line of another program, by theirs.

    A later file wins. ``flags`` are all flags by their spelling, such as ``"--num-layers"``; ``others`` are those of
    the other program, which may take groups. Raises ``UserError`` with file and line.
    """
    settings: dict[str, Setting] = {}
    words: dict[str, list[str]] = {}
    for file in files:
        found, more = _settings_of(file, flags, others or {})
        words |= more
        for dest, setting in found.items():
            if setting.value is _OFF:
                settings.pop(dest, None)
            else:
                settings[dest] = setting
    return settings, words


def setting_line(name: str, value: Any) -> str:
    """One line of a settings file, ``name: value``, that ``read_settings`` reads back as the same value."""
    listed = list(value) if isinstance(value, tuple) else value
    dumped = yaml.safe_dump(listed, default_flow_style=True, width=1 << 30)
    return f"{name}: {dumped.removesuffix('...' + chr(10)).strip()}"


_OFF = object()
"""The value of a switch that a file sets to what it is without the flag."""


def _settings_of(
    file: str, flags: Mapping[str, argparse.Action], others: Mapping[str, argparse.Action]
) -> tuple[dict[str, Setting], dict[str, list[str]]]:
    """What one file sets, ``_OFF`` for a switch that is not given, and the words for the other program."""
    found: dict[str, Setting] = {}
    words: dict[str, list[str]] = {}
    unknown: list[Text] = []
    for key, value in _flat(read_tree(file), lambda name: bool(_find(name, flags) or _find(name, others))):
        ours, theirs = _find(key.text, flags), _find(key.text, others)
        if ours is not None:
            action, inverted = ours
            if action.dest in found:
                first = found[action.dest].where
                refuse(file, key.line, f"{key.text} is set twice, the first time in {first}; keep one")
            found[action.dest] = Setting(_value(file, key, value, action, inverted), f"{file}:{key.line}")
        elif theirs is not None:
            words[theirs[0].dest] = _words(file, key, value, theirs[0])
        else:
            unknown.append(key)
    if unknown:
        known = [spelling.removeprefix("--") for spelling in (*flags, *others)]
        about = about_unknown([key.text for key in unknown], known, "setting", "--help lists the flags")
        raise UserError(f"{file}:{','.join(str(key.line) for key in unknown)}: {about}")
    return found, words


def _flat(group: Group, is_flag: Callable[[str], bool]) -> Iterator[tuple[Text, Node]]:
    """The settings of a group and of the groups below its headings."""
    for key, value in group.pairs:
        if isinstance(value, Group) and not is_flag(key.text):
            yield from _flat(value, is_flag)
        else:
            yield key, value


def _find(name: str, flags: Mapping[str, argparse.Action]) -> tuple[argparse.Action, bool] | None:
    """The flag that a key means, and whether the key says the opposite: ``salt`` for ``--no-salt``."""
    dashed = name.replace("_", "-")
    for spelling in (f"--{dashed}", f"--{name.replace('-', '_')}"):
        if spelling in flags:
            return flags[spelling], False
    opposite = flags.get(f"--no-{dashed}")
    return (opposite, True) if opposite is not None and opposite.nargs == 0 else None


def _value(file: str, key: Text, value: Node, action: argparse.Action, inverted: bool) -> Any:
    """What the flag reads from the value, as it would from the command line."""

    def wrong(what: str) -> NoReturn:
        refuse(file, key.line, f"{key.text}: {what}")

    if isinstance(value, Group):
        wrong("this is a flag and cannot be a heading; give it a value, and move the settings below it elsewhere")
    texts = [value] if isinstance(value, Text) else list(value.items)
    if not texts or any(text.is_empty for text in texts):
        wrong("there is no value; give one, or remove the line")
    if action.nargs == 0:
        if isinstance(value, Values) or not value.is_switch:
            wrong(f"{value.text if isinstance(value, Text) else 'a list'} is not true or false; give one of these")
        is_on = SWITCH[value.text.lower()] != inverted
        if isinstance(action, argparse.BooleanOptionalAction):
            return is_on != key.text.startswith(("no-", "no_"))
        return action.const if is_on else _OFF
    if isinstance(value, Values) and action.nargs is None:
        wrong(f"a list of {len(texts)} values; the flag takes one")
    for text in texts:
        if text.is_switch:
            wrong(f"{text.text} is for switches, and this flag takes a value; quote it if it is meant as text")
    read = [_read(text.text, action, wrong) for text in texts]
    return read[0] if action.nargs is None else read


def _words(file: str, key: Text, value: Node, action: argparse.Action) -> list[str]:
    """The words that give another program's flag its value."""
    name = action.option_strings[0]
    if isinstance(value, Text) and value.is_switch and action.nargs in (0, "?"):
        return [name] if SWITCH[value.text.lower()] else []
    if action.nargs == 0 or (isinstance(value, Text) and value.is_empty):
        refuse(file, key.line, f"{key.text}: there is no value that the flag takes; --help says what it does")
    if isinstance(value, Text):
        return [f"{name}={value.text}"]
    if action.nargs != "+":
        return [f"{name}={json.dumps(_plain(value))}"]
    if isinstance(value, Values):
        return [name, *(item.text for item in value.items)]
    return [name, *(f"{item.text}={_argument(below)}" for item, below in value.pairs)]


def _argument(value: Node) -> str:
    return value.text if isinstance(value, Text) else json.dumps(_plain(value))


def _plain(value: Node) -> Any:
    """The value as YAML means it."""
    if isinstance(value, Text):
        return yaml.safe_load(value.text) if value.plain else value.text
    if isinstance(value, Values):
        return [_plain(item) for item in value.items]
    return {key.text: _plain(below) for key, below in value.pairs}


def _read(text: str, action: argparse.Action, wrong: Any) -> Any:
    try:
        value = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        wrong(str(error))
    if action.choices is not None and value not in action.choices:
        wrong(f"invalid choice: {text!r} (choose from {', '.join(map(str, action.choices))})")
    return value
