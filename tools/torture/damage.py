"""Damage to a file, of every class: its bytes, its length, its kind, and the values in its text."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[bytes, random.Random], bytes]


def _flip_bit(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) or 1)
    return (
        content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :] if content else b"\1"
    )


def _overwrite(content: bytes, draw: random.Random, block: bytes) -> bytes:
    place = draw.choice((0, draw.randrange(len(content) or 1), max(0, len(content) - len(block))))
    return content[:place] + block + content[place + len(block) :]


def _noise(content: bytes, draw: random.Random) -> bytes:
    return _overwrite(content, draw, draw.randbytes(draw.choice((1, 2, 8, 64, 512))))


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[
        : draw.choice((0, 1, len(content) // 2, max(0, len(content) - 1), draw.randrange(len(content) or 1)))
    ]


def _extended(content: bytes, draw: random.Random) -> bytes:
    more = draw.choice((b"\0", b"\n", b"x", b"}", content, draw.randbytes(4096), bytes(1 << 20)))
    return content + more


def _hole(content: bytes, draw: random.Random) -> bytes:
    """Some bytes left out, or doubled."""
    start, length = draw.randrange(len(content) or 1), draw.choice((1, 4, 16, 100))
    part = content[start : start + length]
    return content[:start] + part * draw.choice((0, 2)) + content[start + length :]


_VALUES = (
    b"-1", b"0", b"1e400", b"-1e400", b"NaN", b"Infinity", b"9" * 5000, b"1.5", b"null", b"true", b'"x"', b"[]", b"{}",
    b"[" * 50_000, b'"' + b"a" * 10_000_000 + b'"', b"18446744073709551616", b"2147483648", b'"\\ud800"', b'"../../x"',
)  # fmt: skip


def _value(content: bytes, draw: random.Random) -> bytes:
    """Another value in the place of a number or a word of text."""
    found = list(re.finditer(rb'"[^"\n]*"|-?\d[\d.eE+-]*|[A-Za-z]\w*', content))
    if not found:
        return _noise(content, draw)
    match = draw.choice(found)
    return content[: match.start()] + draw.choice(_VALUES) + content[match.end() :]


_FIELDS: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e300, 10**400, 1 << 63, "", "x", "\ud800", "../../x", [], [None], [[1]], {}, {"a": 1},
)  # fmt: skip


def _field(content: bytes, draw: random.Random) -> bytes:
    """JSON, or a line of it, that stays JSON: one value at any depth is another, or is left out."""
    lines = content.splitlines(keepends=True)
    number = draw.randrange(len(lines) or 1)
    whole = _with_other_field(content, draw)
    if whole is None and lines:
        changed = _with_other_field(lines[number], draw)
        whole = None if changed is None else b"".join([*lines[:number], changed, b"\n", *lines[number + 1 :]])
    return _value(content, draw) if whole is None else whole


def _with_other_field(text: bytes, draw: random.Random) -> bytes | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    holder: Any = [found]
    inner, key = holder, 0
    while isinstance(inner[key], (dict, list)) and inner[key] and draw.random() < 0.8:
        inner = inner[key]
        key = draw.choice([*inner]) if isinstance(inner, dict) else draw.randrange(len(inner))
    if inner is not holder and draw.random() < 0.2:
        del inner[key]
    else:
        inner[key] = draw.choice(_FIELDS)
    return json.dumps(holder[0]).encode()


def _garbage(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(
        (draw.randbytes(len(content)), b"[" * 100_000, b"{" * 100_000, b"\xff\xfe" * 500, b"null", b"{}", b"\n")
    )


CHANGES: dict[str, Change] = {
    "a bit flipped": _flip_bit,
    "noise": _noise,
    "zeros": lambda content, draw: _overwrite(content, draw, bytes(draw.choice((1, 8, 64, 512)))),
    "ones": lambda content, draw: _overwrite(content, draw, b"\xff" * draw.choice((1, 4, 8, 16))),
    "cut": _cut,
    "extended": _extended,
    "a hole": _hole,
    "a value": _value,
    "a field": _field,
    "garbage": _garbage,
}


def _link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


KINDS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: None,
    "a link to /dev/zero": _link_to("/dev/zero"),
    "a FIFO": os.mkfifo,
    "a folder": _folder,
    "a loop of links": lambda path: path.symlink_to(path.name),
    "a link to nothing": _link_to("no/such/file"),
}


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Damage ``path`` in the way that ``kind``, a key of ``CHANGES`` or ``KINDS``, names."""
    if kind in CHANGES:
        path.write_bytes(CHANGES[kind](path.read_bytes(), draw))
        return
    path.unlink()
    KINDS[kind](path)
