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
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from megatron.ltd.errors import UserError
from megatron.ltd.flags.unknown import about_unknown
from megatron.ltd.flags.yaml_tree import SWITCH, is_empty, is_switch, line_of, read_tree, refuse


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
    unknown: list[ScalarNode] = []
    for key, value in _flat(read_tree(file), lambda name: bool(_find(name, flags) or _find(name, others))):
        ours, theirs = _find(key.value, flags), _find(key.value, others)
        if ours is not None:
            action, inverted = ours
            if action.dest in found:
                first = found[action.dest].where
                refuse(file, line_of(key), f"{key.value} is set twice, the first time in {first}; keep one")
            found[action.dest] = Setting(_value(file, key, value, action, inverted), f"{file}:{line_of(key)}")
        elif theirs is not None:
            words[theirs[0].dest] = _words(file, key, value, theirs[0])
        else:
            unknown.append(key)
    if unknown:
        known = [spelling.removeprefix("--") for spelling in (*flags, *others)]
        about = about_unknown([key.value for key in unknown], known, "setting", "--help lists the flags")
        raise UserError(f"{file}:{','.join(str(line_of(key)) for key in unknown)}: {about}")
    return found, words


def _flat(group: MappingNode, is_flag: Callable[[str], bool]) -> Iterator[tuple[ScalarNode, Node]]:
    """The settings of a group and of the groups below its headings."""
    for key, value in group.value:
        if isinstance(value, MappingNode) and not is_flag(key.value):
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


def _value(file: str, key: ScalarNode, value: Node, action: argparse.Action, inverted: bool) -> Any:
    """What the flag reads from the value, as it would from the command line."""

    def wrong(what: str) -> NoReturn:
        refuse(file, line_of(key), f"{key.value}: {what}")

    if isinstance(value, MappingNode):
        wrong("this is a flag and cannot be a heading; give it a value, and move the settings below it elsewhere")
    texts = [value] if isinstance(value, ScalarNode) else list(value.value)
    if not texts or any(is_empty(text) for text in texts):
        wrong("there is no value; give one, or remove the line")
    if action.nargs == 0:
        if not is_switch(value):
            what = value.value if isinstance(value, ScalarNode) else "a list"
            wrong(f"{what} is not true or false; give one of these")
        is_on = SWITCH[value.value.lower()] != inverted
        if isinstance(action, argparse.BooleanOptionalAction):
            return is_on != key.value.startswith(("no-", "no_"))
        return action.const if is_on else _OFF
    if isinstance(value, SequenceNode) and action.nargs is None:
        wrong(f"a list of {len(texts)} values; the flag takes one")
    for text in texts:
        if is_switch(text):
            wrong(f"{text.value} is for switches, and this flag takes a value; quote it if it is meant as text")
    read = [_read(text.value, action, wrong) for text in texts]
    return read[0] if action.nargs is None else read


def _words(file: str, key: ScalarNode, value: Node, action: argparse.Action) -> list[str]:
    """The words that give another program's flag its value."""
    name = action.option_strings[0]
    if is_switch(value) and action.nargs in (0, "?"):
        return [name] if SWITCH[value.value.lower()] else []
    if action.nargs == 0 or is_empty(value):
        refuse(file, line_of(key), f"{key.value}: there is no value that the flag takes; --help says what it does")
    if isinstance(value, ScalarNode):
        return [f"{name}={value.value}"]
    if action.nargs != "+":
        return [f"{name}={json.dumps(_plain(value))}"]
    if isinstance(value, SequenceNode):
        return [name, *(item.value for item in value.value)]
    return [name, *(f"{item.value}={_argument(below)}" for item, below in value.value)]


def _argument(value: Node) -> str:
    return value.value if isinstance(value, ScalarNode) else json.dumps(_plain(value))


def _plain(value: Node) -> Any:
    """The value as YAML means it."""
    if isinstance(value, ScalarNode):
        return yaml.safe_load(value.value) if value.style is None else value.value
    if isinstance(value, SequenceNode):
        return [_plain(item) for item in value.value]
    return {key.value: _plain(below) for key, below in value.value}


def _read(text: str, action: argparse.Action, wrong: Any) -> Any:
    try:
        value = action.type(text) if callable(action.type) else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        wrong(str(error))
    if action.choices is not None and value not in action.choices:
        wrong(f"invalid choice: {text!r} (choose from {', '.join(map(str, action.choices))})")
    return value
