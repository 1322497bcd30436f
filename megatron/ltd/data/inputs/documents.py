"""Documents from files: the content of ``--input`` in chunks that any process can parse on its own.

    JSON lines      one object per line, with a document in each of the given keys
    table           one row likewise, with a document in each of the given columns
    plain text      the whole file is one document

Text is UTF-8; a byte-order mark at the start of a file is ignored, and so are empty lines between JSON lines. This
module imports no torch, so that worker processes start quickly.

    bytes of all files   |------ 1/3 ------|------ 2/3 ------|------ 3/3 ------|     --shard splits them equally
    documents            [a ][b      ][c       ][d ][e                ][f     ]     1/3: a b c   2/3: d e   3/3: f

A document belongs to the shard of its first byte: each is in one shard, and the shards in order are the whole input.
A compressed file, a table and a plain text are not cut: all of it belongs to the shard of the file's first byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron.ltd.data.inputs.files import InputFile, open_content, stored_position
from megatron.ltd.data.inputs.table_process import read_table
from megatron.ltd.data.inputs.tables import Row
from megatron.ltd.errors import UserError
from megatron.ltd.flags.ranges import count_in

CHUNK_BYTES = 512 << 10
_MOST_KEYS, _LONGEST_KEY = 8, 40


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count`` parts of the input, equal in bytes. Invalid numbers raise ``UserError``."""

    number: int
    count: int

    def __post_init__(self) -> None:
        text = f"--shard {self.number}/{self.count}"
        if self.count < 1:
            raise UserError(f"{text}: there are {self.count} shards; use at least one, as in 1/1")
        if self.number < 1:
            raise UserError(f"{text}: shards count from 1; use 1/{self.count} or more")
        if self.number > self.count:
            raise UserError(f"{text}: there are {self.count} shards; use {self.count}/{self.count} or less")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard of ``--shard`` I/N. Raises ``UserError``."""
        number, count = (count_in(part) for part in text.partition("/")[::2])
        if number is None or count is None:
            raise UserError(f"--shard {text}: give the number of a shard and the number of shards, for example 1/8")
        return cls(number, count)

    def span(self, total_bytes: int) -> tuple[int, int]:
        """Its first byte and its end in an input of ``total_bytes``."""
        return total_bytes * (self.number - 1) // self.count, total_bytes * self.number // self.count


WHOLE = Shard(1, 1)


@dataclass(frozen=True)
class RawChunk:
    """Some lines of JSON lines, some rows of a table, or a whole text file.

    Before them in the file are the lines in its first ``skipped_bytes``, and then ``lines_before`` more lines or rows.
    """

    file: InputFile
    lines: tuple[bytes, ...] = ()
    lines_before: int = 0
    skipped_bytes: int = 0
    rows: tuple[Row, ...] = ()
    stored_bytes: int = 0
    """Bytes of the file that hold the chunk; of a compressed file about so many."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the lines, line ends included, or of the texts in the rows."""
        texts = sum(len(text.encode("utf-8")) for row in self.rows for text in row if text is not None)
        return sum(map(len, self.lines)) + texts

    def line_number(self, place: int) -> int:
        """The line number, from 1, of ``lines[place]``. Reads what a shard skipped, so that it is for errors only."""
        number, to_read = self.lines_before + place + 1, self.skipped_bytes
        if to_read:
            with open(self.file.path, "rb") as stream:
                while to_read and (block := stream.read(min(to_read, CHUNK_BYTES))):
                    number += block.count(b"\n")
                    to_read -= len(block)
        return number


@dataclass(frozen=True)
class Documents:
    """The documents of a chunk, each with one text per key, and the number of bad lines that were left out."""

    texts: tuple[tuple[str, ...], ...]
    bad_lines: int


def read_chunks(
    files: Sequence[InputFile],
    chunk_bytes: int = CHUNK_BYTES,
    shard: Shard = WHOLE,
    json_keys: Sequence[str] = ("text",),
) -> Iterator[RawChunk]:
    """The documents of the shard in order, in chunks of whole lines or rows of about ``chunk_bytes``; a text is one.

    ``json_keys`` are the columns to read of a table. Raises ``UserError`` for a file that cannot be read.
    """
    begin, end = shard.span(sum(file.num_bytes for file in files))
    file_start = 0
    for file in files:
        first, stop = begin - file_start, end - file_start
        file_start += file.num_bytes
        begins_here = first <= 0 and (stop > 0 or shard.number == shard.count)
        if file.can_be_cut:
            yield from _read_lines(file, max(first, 0), min(stop, file.num_bytes), chunk_bytes)
        elif not begins_here:
            continue
        elif file.table is not None:
            yield from _read_table(file, chunk_bytes, json_keys)
        elif file.is_json:
            yield from _read_compressed_lines(file, chunk_bytes)
        else:
            with open_content(file) as stream:
                yield RawChunk(file, (stream.read(),), stored_bytes=file.num_bytes)


def _read_lines(file: InputFile, first: int, stop: int, chunk_bytes: int) -> Iterator[RawChunk]:
    """The lines that start at the bytes ``first`` to ``stop`` - 1 of ``file``."""
    if first >= stop:
        return
    with open(file.path, "rb") as stream:
        if first:
            stream.seek(first - 1)
            stream.readline()
        position = skipped_bytes = stream.tell()
        lines_before = 0
        while position < stop and (lines := stream.readlines(min(chunk_bytes, stop - position))):
            num_bytes = sum(map(len, lines))
            while position + num_bytes - len(lines[-1]) >= stop:
                num_bytes -= len(lines.pop())
            yield RawChunk(file, tuple(lines), lines_before, skipped_bytes, stored_bytes=num_bytes)
            position += num_bytes
            lines_before += len(lines)


def _read_compressed_lines(file: InputFile, chunk_bytes: int) -> Iterator[RawChunk]:
    position = lines_before = 0
    with open_content(file) as stream:
        while lines := stream.readlines(chunk_bytes):
            position, before = stored_position(stream), position
            yield RawChunk(file, tuple(lines), lines_before, stored_bytes=position - before)
            lines_before += len(lines)


def _read_table(file: InputFile, chunk_bytes: int, columns: Sequence[str]) -> Iterator[RawChunk]:
    waiting: list[Row] = []
    waiting_bytes = rows_before = 0
    read = counted = 0.0

    def chunk() -> RawChunk:
        return RawChunk(
            file, rows=tuple(waiting), lines_before=rows_before, stored_bytes=round((read - counted) * file.num_bytes)
        )

    for rows, read in read_table(file, columns):
        for row in rows:
            waiting.append(row)
            waiting_bytes += sum(map(len, filter(None, row)))
            if waiting_bytes >= chunk_bytes:
                yield chunk()
                rows_before, counted = rows_before + len(waiting), read
                waiting, waiting_bytes = [], 0
    if waiting:
        yield chunk()


def parse_chunk(chunk: RawChunk, json_keys: Sequence[str], skip_bad_lines: bool) -> Documents:
    """The documents of ``chunk``. A bad JSON line raises ``UserError`` with its number, or is skipped and counted."""
    if chunk.file.table is not None:
        return _parse_rows(chunk, json_keys, skip_bad_lines)
    if not chunk.file.is_json:
        try:
            return Documents(((_decode(chunk.lines[0], is_start=True),),), 0)
        except ValueError as error:
            raise UserError(f"{chunk.file.path}: {error}; convert the file to UTF-8") from None
    texts, bad_lines = [], 0
    for place, line in enumerate(chunk.lines):
        if not line.strip():
            continue
        is_start = chunk.skipped_bytes + chunk.lines_before + place == 0
        try:
            texts.append(_parse_line(line, json_keys, is_start))
        except ValueError as error:
            if not skip_bad_lines:
                advice = "correct the line, or skip such lines with --skip-bad-lines"
                raise UserError(f"{chunk.file.path}:{chunk.line_number(place)}: {error}; {advice}") from None
            bad_lines += 1
    return Documents(tuple(texts), bad_lines)


def _parse_rows(chunk: RawChunk, columns: Sequence[str], skip_bad_lines: bool) -> Documents:
    texts, bad_rows = [], 0
    for number, row in enumerate(chunk.rows, start=chunk.lines_before + 1):
        whole = tuple(text for text in row if text is not None)
        if len(whole) == len(row):
            texts.append(whole)
        elif skip_bad_lines:
            bad_rows += 1
        else:
            empty = columns[row.index(None)]
            raise UserError(
                f'{chunk.file.path}: row {number} has no value in "{empty}"; fill it in, or skip such rows with '
                "--skip-bad-lines"
            )
    return Documents(tuple(texts), bad_rows)


def _decode(content: bytes, is_start: bool) -> str:
    try:
        return content.decode("utf-8-sig" if is_start else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} (0x{content[error.start]:02x})") from None


def _parse_line(line: bytes, json_keys: Sequence[str], is_start: bool) -> tuple[str, ...]:
    """The texts of one JSON line. Raises ``ValueError`` with what is wrong with it."""
    try:
        item = json.loads(_decode(line, is_start))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg.removesuffix(' at')} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not readable JSON (nested too deeply)") from None
    if not isinstance(item, dict):
        raise ValueError(f"a JSON {type(item).__name__} instead of an object")
    texts = []
    for key in json_keys:
        if key not in item:
            raise ValueError(f'the object has no "{key}" but {_names(item)}; name one with --json-keys')
        if not isinstance(item[key], str):
            raise ValueError(f'"{key}" is a {type(item[key]).__name__} instead of a string')
        try:
            item[key].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f'"{key}" is not Unicode text (half a surrogate pair at character {error.start})'
            ) from None
        texts.append(item[key])
    return tuple(texts)


def _names(item: dict[str, object]) -> str:
    """The keys of an object, the first ones of many."""
    shown = [f'"{key[:_LONGEST_KEY]}"' for key in list(item)[:_MOST_KEYS]]
    return ", ".join(shown + ["..."] * (len(item) > _MOST_KEYS)) or "no keys"
