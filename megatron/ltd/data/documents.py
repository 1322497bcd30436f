"""Documents from text files: the files behind ``--input``, read in chunks that any process can parse on its own.

    .jsonl, .json   JSON lines: one object a line, a document in each of the wanted keys
    .txt            the whole file is one document
    anything else   JSON lines when its first character is "{", else one document

Text is UTF-8; a byte-order mark at the start of a file is no part of it. Empty lines between JSON lines are passed
over. Imports no torch: worker processes start in a moment.
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
class RawChunk:
    """Some lines of a JSON-lines file (the first has number ``first_line``, from 1), or a whole text file."""

    file: InputFile
    first_line: int
    lines: tuple[bytes, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the lines, line ends included."""
        return sum(map(len, self.lines))


@dataclass(frozen=True)
class Documents:
    """The documents of a chunk, each with one text per wanted key, and how many bad lines were left out."""

    texts: tuple[tuple[str, ...], ...]
    bad_lines: int


def find_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """The files behind ``--input``: paths as given, patterns (``*``, ``?``, ``[]``, ``**``) sorted by name.

    Raises ``UserError`` when one is missing, matches nothing, is a folder or cannot be read, or when all are empty.
    """
    files = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"--input {pattern}: no such file; give text files or a quoted pattern of them")
        files += [_inspect(path) for path in paths]
    if not any(file.num_bytes for file in files):
        raise UserError(f"--input {' '.join(patterns)}: empty; give files with text")
    return files


def read_chunks(files: Sequence[InputFile], chunk_bytes: int = CHUNK_BYTES) -> Iterator[RawChunk]:
    """All files in order, cut at line ends into chunks of about ``chunk_bytes`` [bytes]; a text file is one chunk."""
    for file in files:
        with open(file.path, "rb") as stream:
            if not file.is_json:
                yield RawChunk(file, 1, (stream.read(),))
                continue
            next_line = 1
            while lines := stream.readlines(chunk_bytes):
                yield RawChunk(file, next_line, tuple(lines))
                next_line += len(lines)


def parse_chunk(chunk: RawChunk, json_keys: Sequence[str], skip_bad_lines: bool) -> Documents:
    """The documents of ``chunk``. A bad JSON line raises ``UserError`` with its number, or is counted when skipped."""
    if not chunk.file.is_json:
        try:
            return Documents(((_decode(chunk.lines[0], is_start=True),),), 0)
        except ValueError as error:
            raise UserError(f"{chunk.file.path}: {error}; convert the file to UTF-8") from None
    texts, bad_lines = [], 0
    for number, line in enumerate(chunk.lines, start=chunk.first_line):
        if not line.strip():
            continue
        try:
            texts.append(_parse_line(line, json_keys, is_start=number == 1))
        except ValueError as error:
            if not skip_bad_lines:
                advice = "mend the line, or go on without such lines with --skip-bad-lines"
                raise UserError(f"{chunk.file.path}:{number}: {error}; {advice}") from None
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
    """The wanted texts of one JSON line. Raises ``ValueError`` saying what is wrong with it."""
    try:
        item = json.loads(_decode(line, is_start))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deeply)") from None
    if not isinstance(item, dict):
        raise ValueError(f"a JSON {type(item).__name__} where an object is wanted")
    texts = []
    for key in json_keys:
        if key not in item:
            raise ValueError(f'no "{key}" in the object (see --json-keys)')
        if not isinstance(item[key], str):
            raise ValueError(f'"{key}" is a {type(item[key]).__name__} where a string is wanted')
        try:
            item[key].encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f'"{key}" is no Unicode text (half a surrogate pair at character {error.start})') from None
        texts.append(item[key])
    return tuple(texts)
