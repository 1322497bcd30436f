"""YAML files as PyYAML's nodes: groups of keys, lists, and single values, which are text.

Tags, anchors and aliases are refused, and size and depth are bounded, so that a file can neither make objects nor grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import yaml

from megatron.ltd.errors import UserError
from megatron.ltd.small_files import read_small

_MOST_BYTES = 1 << 18
_MOST_LEVELS = 16
SWITCH = {"true": True, "false": False}
_NO_VALUE = ("", "~", "null")


def line_of(node: yaml.Node) -> int:
    """The line of a node, from 1."""
    return node.start_mark.line + 1


def is_empty(node: yaml.Node) -> bool:
    """Whether there is no value."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value.lower() in _NO_VALUE


def is_switch(node: yaml.Node) -> bool:
    """Whether it is true or false, without quotes."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value.lower() in SWITCH


def read_tree(file: str) -> yaml.MappingNode:
    """The keys and values of a YAML file. Raises ``UserError`` with file and line for any other content."""
    text = _read_text(file)
    try:
        _check_events(file, yaml.parse(text, Loader=yaml.SafeLoader))
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        reason = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise UserError(f"{file}:{line}: this is not YAML ({reason}); write one KEY: VALUE a line") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: this is not YAML ({' '.join(str(error).split())}); write KEY: VALUE lines") from None
    if root is None or is_empty(root):
        return yaml.MappingNode("", [])
    if not isinstance(root, yaml.MappingNode):
        refuse(file, line_of(root), "the file is not made of KEY: VALUE lines; write settings such as lr: 3e-4")
    _check_node(file, root)
    return root


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


def _check_events(file: str, events: Iterator[yaml.Event]) -> None:
    """Refuse what settings do not need, before anything is built of it."""
    num_documents = level = 0
    for event in events:
        line = event.start_mark.line + 1
        num_documents += isinstance(event, yaml.DocumentStartEvent)
        if num_documents > 1:
            refuse(file, line, "a second document starts; keep one")
        if getattr(event, "anchor", None) is not None:
            refuse(file, line, "anchors and aliases are not supported; write the value out")
        if getattr(event, "tag", None) is not None:
            refuse(file, line, f"the tag {event.tag} is not supported; write the value alone")
        if isinstance(event, yaml.NodeEvent) and level > _MOST_LEVELS:
            refuse(file, line, f"groups are nested in more than {_MOST_LEVELS} levels; use fewer")
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)


def _check_node(file: str, node: yaml.Node) -> None:
    """Refuse lists of anything but single values, and keys that are no names or are written twice."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode):
                refuse(file, line_of(item), "a list holds another list or a group; give single values")
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = line_of(key)
            if not isinstance(key, yaml.ScalarNode) or key.value == "":
                refuse(file, line, "a key is not a name; write KEY: VALUE")
            if key.value in lines:
                first = lines[key.value]
                refuse(file, line, f"{key.value} is written twice, the first time in line {first}; keep one")
            lines[key.value] = line
            _check_node(file, value)
