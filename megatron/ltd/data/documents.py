"""Documents from text files: the files of ``--input``, read in chunks that any process can parse on its own.

    .jsonl, .json   JSON lines: one object per line, with a document in each of the given keys
    .txt            the whole file is one document
    anything else   JSON lines if the first character is "{", else one document

Text is UTF-8; a byte-order mark at the start of a file is ignored, and so are empty lines between JSON lines. This
module imports no torch, so that worker processes start quickly.

    bytes of all files   |------ 1/3 ------|------ 2/3 ------|------ 3/3 ------|     --shard splits them equally
    documents            [a ][b      ][c       ][d ][e                ][f     ]     1/3: a b c   2/3: d e   3/3: f

A document belongs to the shard of its first byte: each is in one shard, and the shards in order are the whole input.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.ltd.errors import UserError

CHUNK_BYTES = 512 << 10


@dataclass(frozen=True)
class InputFile:
    """A text file, its size and whether it holds JSON lines."""

    path: str
    num_bytes: int
    is_json: bool


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
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal()):
            raise UserError(f"--shard {text}: give the number of a shard and the number of shards, for example 1/8")
        return cls(int(number), int(count))

    def span(self, total_bytes: int) -> tuple[int, int]:
        """Its first byte and its end in an input of ``total_bytes``."""
        return total_bytes * (self.number - 1) // self.count, total_bytes * self.number // self.count


WHOLE = Shard(1, 1)


@dataclass(frozen=True)
class RawChunk:
    """Some lines of a JSON-lines file, or a whole text file.

    Before them in the file are the lines in its first ``skipped_bytes``, and then ``lines_before`` more.
    """

    file: InputFile
    lines: tuple[bytes, ...]
    lines_before: int = 0
    skipped_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the lines, line ends included."""
        return sum(map(len, self.lines))

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


def find_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """The files of ``--input``: paths as given, patterns (``*``, ``?``, ``[]``, ``**``) sorted by name.

    Raises ``UserError`` if one is missing, matches nothing, is a folder or cannot be read, or if all are empty.
    """
    files = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"--input {pattern}: no such file; give text files, or a quoted pattern")
        files += [_inspect(path) for path in paths]
    if not any(file.num_bytes for file in files):
        raise UserError(f"--input {' '.join(patterns)}: all files are empty; give files with text")
    return files


def read_chunks(files: Sequence[InputFile], chunk_bytes: int = CHUNK_BYTES, shard: Shard = WHOLE) -> Iterator[RawChunk]:
    """The documents of the shard in order, in chunks of whole lines of about ``chunk_bytes``; a text file is one."""
    begin, end = shard.span(sum(file.num_bytes for file in files))
    file_start = 0
    for file in files:
        first, stop = begin - file_start, end - file_start
        file_start += file.num_bytes
        if file.is_json:
            yield from _read_lines(file, max(first, 0), min(stop, file.num_bytes), chunk_bytes)
        elif first <= 0 and (stop > 0 or shard.number == shard.count):
            yield RawChunk(file, (Path(file.path).read_bytes(),))


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
            yield RawChunk(file, tuple(lines), lines_before, skipped_bytes)
            position += num_bytes
            lines_before += len(lines)


def parse_chunk(chunk: RawChunk, json_keys: Sequence[str], skip_bad_lines: bool) -> Documents:
    """The documents of ``chunk``. A bad JSON line raises ``UserError`` with its number, or is skipped and counted."""
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


def _inspect(path: str) -> InputFile:
    if Path(path).is_dir():
        raise UserError(f"--input {path}: is a folder; give its files, for example '{path.rstrip('/')}/*.jsonl'")
    try:
        with open(path, "rb") as stream:
            start = stream.read(4096)
        num_bytes = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"--input {path}: cannot be read ({error.strerror})") from None
    suffix = Path(path).suffix.lower()
    looks_json = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    return InputFile(path, num_bytes, suffix in (".jsonl", ".json") or (suffix != ".txt" and looks_json))


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
            raise ValueError(f'the object has no "{key}" (see --json-keys)')
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
