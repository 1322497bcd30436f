"""Labelled sentences, or pairs of sentences, from text files, for finetuning an encoder.

    .jsonl, .json    one object per line: {"text": "...", "label": "positive"}
    .tsv             one sample per line, columns separated by tabs; the first line has the names of the columns

Text is UTF-8. A label is a word or an integer, of one type in a file. Classes are the sorted labels of the training
data: words, which all labels of a .tsv are, by spelling, and integers by value. Imports no torch. Not here: tokens
(``data.labelled_rows``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError, reads_from
from megatron.ltd.small_files import check_regular

Label = str | int


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a TSV file, or of the keys of a JSON object."""

    text: str = "text"
    label: str = "label"
    pair: str | None = None
    """The second sentence of a pair; None if samples are single sentences."""


@dataclass(frozen=True)
class LabelledText:
    """Samples in the order of the file: one or two sentences each, and the index of the class."""

    sentences: tuple[tuple[str, ...], ...]
    labels: tuple[int, ...]
    classes: tuple[Label, ...]
    """In the order of their numbers."""
    fingerprint: str
    """sha256 (hex) of the file's bytes."""


def read_labelled(path: str, columns: Columns, *, flag: str, classes: Sequence[Label] | None = None) -> LabelledText:
    """The samples of the file ``path``, which ``flag`` names. Raises ``UserError`` naming file and line.

    ``classes`` are those that labels may have (the training data's); None takes the file's own, of which there must be
    two or more.
    """
    with reads_from(f"{flag} {path}", "give a file of labelled sentences"):
        check_regular(path)
        content = Path(path).read_bytes()
    suffix = Path(path).suffix.lower()
    if suffix not in (".tsv", ".jsonl", ".json"):
        raise UserError(f"{flag} {path}: neither .tsv nor .jsonl: convert it to one of them, and name it so")
    rows = _json_rows if suffix != ".tsv" else _tsv_rows
    sentences: list[tuple[str, ...]] = []
    found: list[Label] = []
    for place, row in rows(path, content, columns):
        sentences.append(tuple(_text(place, row, name) for name in (columns.text, columns.pair) if name is not None))
        found.append(_label(place, row, columns.label, found[0] if found else None, classes))
    if not sentences:
        raise UserError(f"{flag} {path}: holds no samples; give a file of labelled sentences")
    if classes is None:
        classes = sorted(set(found))
        if len(classes) < 2:
            raise UserError(f"{flag} {path}: every label is {classes[0]!r}; there must be two classes or more")
    numbers = {label: number for number, label in enumerate(classes)}
    labels = tuple(numbers[label] for label in found)
    return LabelledText(tuple(sentences), labels, tuple(classes), hashlib.sha256(content).hexdigest())


def _json_rows(path: str, content: bytes, columns: Columns) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, line in _lines(path, content):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error}"
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            raise UserError(f"{place}: not JSON ({reason}); correct the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: a JSON {type(row).__name__} instead of an object; correct the line")
        yield place, row


def _tsv_rows(path: str, content: bytes, columns: Columns) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not content.strip():
        return
    lines = _lines(path, content)
    first, line = next(lines)
    names = line.split("\t")
    wanted = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    for name in wanted:
        if name not in names:
            raise UserError(
                f'{first}: no column "{name}" among {", ".join(names)}; put the names of the columns into the first '
                "line, or give them with --text-column, --text-pair-column and --label-column"
            )
    for place, line in lines:
        cells = line.split("\t")
        if not line:
            continue
        if len(cells) != len(names):
            raise UserError(f"{place}: {len(cells)} columns instead of the {len(names)} of the first line; correct it")
        yield place, dict(zip(names, cells, strict=True))


def _lines(path: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Lines without their ends, after file and number. Only line feeds end a line: a text may hold other separators."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield f"{path}:{number}", line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None


def _text(place: str, row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise UserError(
            f'{place}: no "{name}" in the object; add it, or give the key with --text-column or --text-pair-column'
        )
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        what = "empty" if text is None or isinstance(text, str) else f"a {type(text).__name__}"
        raise UserError(f'{place}: "{name}" is {what} instead of a sentence; correct the line')
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f'{place}: "{name}" is not Unicode text (half a surrogate pair); correct the line')
    return text


def _label(
    place: str, row: Mapping[str, Any], name: str, first: Label | None, classes: Sequence[Label] | None
) -> Label:
    label = row.get(name)
    if label is None or label == "":
        raise UserError(f'{place}: the label ("{name}") is missing; add it, or remove the sample')
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise UserError(
            f'{place}: the label ("{name}") {label!r} is a {type(label).__name__}; it must be a word or an integer'
        )
    if first is not None and type(label) is not type(first):
        raise UserError(f"{place}: the label {label!r} and the first one, {first!r}, have two types; use one")
    if classes is not None and label not in classes:
        shown = ", ".join(repr(known) for known in classes[:10]) + (", ..." if len(classes) > 10 else "")
        raise UserError(f"{place}: the label {label!r} is unknown; the training data have {shown}")
    return label
