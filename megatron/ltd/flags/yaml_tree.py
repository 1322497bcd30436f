"""YAML files as trees of text: groups of keys, lists, and single values, each with its line.

PyYAML's safe loader splits the text into events; nothing is interpreted here. Tags, anchors and aliases are refused,
and size and depth are bounded, so that a file can neither make objects nor grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import yaml

from megatron.ltd.errors import UserError
from megatron.ltd.small_files import read_small

_MOST_BYTES = 1 << 18
_MOST_LEVELS = 16
SWITCH = {"true": True, "false": False}
_NO_VALUE = ("", "~", "null")


@dataclass(frozen=True)
class Text:
    """A single value, or a key."""

    line: int
    text: str
    plain: bool
    """Whether it is written without quotes."""

    @property
    def is_empty(self) -> bool:
        return self.plain and self.text.lower() in _NO_VALUE

    @property
    def is_switch(self) -> bool:
        return self.plain and self.text.lower() in SWITCH


@dataclass(frozen=True)
class Values:
    """Several values."""

    line: int
    items: tuple[Text, ...]


@dataclass(frozen=True)
class Group:
    """Keys with their values, below a heading or in the whole file."""

    line: int
    pairs: tuple[tuple[Text, Node], ...]


Node = Text | Values | Group


def read_tree(file: str) -> Group:
    """The keys and values of a YAML file. Raises ``UserError`` with file and line for any other content."""
    try:
        events = yaml.parse(_read_text(file), Loader=yaml.SafeLoader)
        return _Tree(file, events).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        reason = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise UserError(f"{file}:{line}: this is not YAML ({reason}); write one KEY: VALUE a line") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: this is not YAML ({' '.join(str(error).split())}); write KEY: VALUE lines") from None


def refuse(file: str, line: int, what: str) -> NoReturn:
    """Raise the ``UserError`` for a line of a file."""
    raise UserError(f"{file}:{line}: {what}")


def _read_text(file: str) -> str:
    """The file's text, of a regular file of a bounded size only."""
    named = f"--config {file}"
    try:
        content = read_small(file, _MOST_BYTES)
    except FileNotFoundError:
        raise UserError(f"{named}: there is no such file; check the path") from None
    except OSError as error:
        raise UserError(f"{named}: the file cannot be read ({error.strerror}); give a YAML file") from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: this is not UTF-8 text; save the file as UTF-8") from None


class _Tree:
    """Reads a tree of settings from PyYAML's events."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self._file = file
        self._events = events

    def read(self) -> Group:
        """The whole file."""
        root = Group(1, ())
        num_documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                num_documents += 1
                if num_documents > 1:
                    self._refuse(event, "a second document starts; keep one")
            elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent, yaml.AliasEvent)):
                node = self._node(event, level=0)
                if isinstance(node, Group):
                    root = node
                elif not (isinstance(node, Text) and node.is_empty):
                    self._refuse(event, "the file is not made of KEY: VALUE lines; write settings such as lr: 3e-4")
        return root

    def _node(self, event: yaml.Event, level: int) -> Node:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse(event, "anchors and aliases are not supported; write the value out")
        if event.tag is not None:
            self._refuse(event, f"the tag {event.tag} is not supported; write the value alone")
        if level > _MOST_LEVELS:
            self._refuse(event, f"groups are nested in more than {_MOST_LEVELS} levels; use fewer")
        line = event.start_mark.line + 1
        if isinstance(event, yaml.ScalarEvent):
            return Text(line, event.value, plain=event.style is None)
        if isinstance(event, yaml.SequenceStartEvent):
            return Values(line, tuple(self._items(level)))
        return Group(line, tuple(self._pairs(level)))

    def _items(self, level: int) -> Iterator[Text]:
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            node = self._node(event, level + 1)
            if not isinstance(node, Text):
                self._refuse(event, "a list holds another list or a group; give single values")
            yield node

    def _pairs(self, level: int) -> Iterator[tuple[Text, Node]]:
        lines: dict[str, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, level + 1)
            if not isinstance(key, Text) or key.text == "":
                self._refuse(event, "a key is not a name; write KEY: VALUE")
            if key.text in lines:
                self._refuse(event, f"{key.text} is written twice, the first time in line {lines[key.text]}; keep one")
            lines[key.text] = key.line
            yield key, self._node(next(self._events), level + 1)

    def _refuse(self, event: yaml.Event, what: str) -> NoReturn:
        refuse(self._file, event.start_mark.line + 1, what)
