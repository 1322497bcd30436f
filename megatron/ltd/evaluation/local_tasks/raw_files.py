"""Reads published files as records: text, compressed or in a zip archive, JSON or not; each record has its place.

    PATH.jsonl PATH.json PATH.txt ...   as they are; also .gz and .bz2      FOLDER   every .txt in it, by name
    PATH.zip                            the member whose path ends like that in the published archive
    PATH.lst                            labels, one per line, for the records of the file before it

Files are read as a whole: the largest of these data sets has some hundred megabytes.
Not here: the meaning of a record (``convert``).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.evaluation.local_tasks.shapes import ShapeError
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import check_regular


@dataclass(frozen=True)
class RawText:
    """The text of a file, or of a member of an archive."""

    name: str
    """For error messages."""
    text: str


@dataclass(frozen=True)
class RawRecord:
    """One record of a file."""

    place: str
    """File and line, or file and number of the record."""
    value: Any


Reader = Callable[[RawText], Iterator[RawRecord]]


def read_raw(path: Path, members: Sequence[str]) -> list[RawText]:
    """The texts of ``path``: one, or one per file of a folder. ``members``: possible ends of the path of a zip member.

    Raises ``ShapeError`` for files that cannot be read or are not UTF-8, and an archive without such a member.
    """
    try:
        if path.is_dir():
            texts = [_decode(str(file), file.read_bytes()) for file in sorted(path.glob("*.txt"))]
            if not texts:
                raise ShapeError(f"{path}: expected .txt files in the folder, found none")
            return texts
        if path.suffix == ".zip":
            return [_read_member(path, members)]
        if path.name.endswith((".tar.gz", ".tgz", ".tar")):
            raise ShapeError(
                f"{path}: expected files or a .zip archive, found a .tar archive; extract it, give its files"
            )
        check_regular(path)
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        elif path.suffix == ".bz2":
            content = bz2.decompress(content)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ShapeError(f"{path}: cannot be read ({reason})") from None
    return [_decode(str(path), content)]


def json_records(raw: RawText) -> Iterator[RawRecord]:
    """JSON lines, or one JSON array."""
    if raw.text.lstrip().startswith("["):
        for number, value in enumerate(_parse(raw.text, raw.name), start=1):
            yield RawRecord(f"{raw.name}, record {number}", value)
        return
    for number, line in enumerate(raw.text.split("\n"), start=1):
        if line.strip():
            place = f"{raw.name}:{number}"
            yield RawRecord(place, _parse(line, place))


def whole_json(raw: RawText) -> Iterator[RawRecord]:
    """One JSON value in the whole file."""
    yield RawRecord(raw.name, _parse(raw.text, raw.name))


def table_records(raw: RawText) -> Iterator[RawRecord]:
    """JSON lines, or a tab-separated table with a header."""
    if raw.text.lstrip().startswith("{"):
        yield from json_records(raw)
        return
    rows = csv.DictReader(io.StringIO(raw.text), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ShapeError(
                f"{raw.name}:{number}: expected {len(rows.fieldnames or ())} columns separated by tabs, found another "
                "number"
            )
        yield RawRecord(f"{raw.name}:{number}", dict(row))


def hellaswag_records(raw: RawText) -> Iterator[RawRecord]:
    """JSON lines, or blocks of six lines: "activity: context", the gold ending's number, four endings.

    The context of a block is the published one after its clean-up, where an incomplete last sentence ("... roof. he")
    was a separate field, ``ctx_b``: the text after the last full stop, if it contains none itself.
    """
    if raw.text.lstrip().startswith("{"):
        yield from json_records(raw)
        return
    lines = raw.text.rstrip("\n").split("\n")
    if len(lines) % 6:
        raise ShapeError(f"{raw.name}: expected JSON lines, or six lines an item, found {len(lines)} lines")
    for start in range(0, len(lines), 6):
        place = f"{raw.name}:{start + 1}"
        activity, colon, context = lines[start].partition(": ")
        if not colon:
            raise ShapeError(
                f'{place}: expected "activity: context", found {lines[start][:40]!r}; give the file as published'
            )
        parts = re.fullmatch(r"""(.*[.!?]["')]*) ([^.!?]+)""", context)
        whole, rest = parts.groups() if parts else (context, "")
        fields = {"activity_label": activity, "ctx_a": whole, "ctx_b": rest, "label": lines[start + 1]}
        yield RawRecord(place, {**fields, "endings": lines[start + 2 : start + 6]})


def wikitext_pages(raw: RawText) -> Iterator[RawRecord]:
    """The pages of a WikiText file: each begins with a line `` = Title = `` (sections have more equals signs)."""
    page: list[str] = []
    start = 0
    for number, line in enumerate(raw.text.split("\n"), start=1):
        if re.fullmatch(r"= (?!=).* =", line.strip()):
            if start:
                yield RawRecord(f"{raw.name}:{start}", {"page": "\n".join(page)})
            page, start = [], number
        elif not start and line.strip():
            raise ShapeError(f'{raw.name}:{number}: expected a page\'s " = Title = " first, found {line[:40]!r}')
        page.append(line)
    if start:
        yield RawRecord(f"{raw.name}:{start}", {"page": "\n".join(page)})


def _read_member(path: Path, members: Sequence[str]) -> RawText:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        found = [name for name in names if any(f"/{name}".endswith(f"/{member}") for member in members)]
        if len(found) != 1:
            raise ShapeError(
                f"{path}: expected one member {' or '.join(members) or '(none is known for this split)'}, found "
                f"{', '.join(found or names[:5]) or 'none'}; extract the archive and give the file itself"
            )
        return _decode(f"{path}/{found[0]}", archive.read(found[0]))


def _decode(name: str, content: bytes) -> RawText:
    try:
        return RawText(name, content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise ShapeError(f"{name}: expected UTF-8, found {found}") from None


def _parse(text: str, place: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise ShapeError(
            f"{place}: expected JSON, found something else ({error.msg.removesuffix(' at')} at column {error.colno})"
        ) from None
