"""The files of ``--input``: found, recognised by their content, and opened.

    first bytes                                   read as
    of gzip, bzip2, xz or Zstandard               their content, decompressed while it is read
    of Parquet, or of an Arrow file or stream     rows; --json-keys are columns                  (data.inputs.tables)
    "{"                                           JSON lines
    anything else                                 one document of plain text

The name decides only between the last two: .jsonl and .json are JSON lines and .txt is plain text, also before a suffix
of compression. A folder means the files in it, and a dataset saved by Hugging Face's ``datasets`` its rows.

Files are read as they are used, and memory does not grow with their size. No torch.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import check_regular

_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
_SKIPPABLE = {b"\x2a\x4d\x18": "Zstandard"}
"""The bytes after the first one of a frame that may precede others."""
_TABLES = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow stream"}
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z"}
_TAR = slice(257, 262)
_JSON_SUFFIXES, _TEXT_SUFFIX, _COMPRESSED = (".jsonl", ".json"), ".txt", (".gz", ".bz2", ".xz", ".zst")
_TABLE_SUFFIXES = (".parquet", ".arrow")
_SEPARATED = (".csv", ".tsv")
_START_BYTES = 4096
_BUFFER_BYTES = 1 << 20
MOST_DOCUMENT_BYTES = 512 << 20
"""One document of a compressed file, decompressed: a small file can expand to more than any memory."""
_DAMAGE = (EOFError, OSError, lzma.LZMAError, zlib.error)


@dataclass(frozen=True)
class InputFile:
    """A file, its size on disk [bytes] and how it is read: as JSON lines, as a table, or as plain text."""

    path: str
    num_bytes: int
    is_json: bool
    compression: str | None = None
    table: str | None = None

    @property
    def can_be_cut(self) -> bool:
        """Whether a shard may begin within the file: at any line of uncompressed JSON lines."""
        return self.is_json and self.compression is None


def find_inputs(patterns: Sequence[str]) -> list[InputFile]:
    """The files of ``--input``: paths as given, patterns (``*``, ``?``, ``[]``, ``**``) and folders sorted by name.

    Raises ``UserError`` if one is missing, matches nothing, cannot be read or is not a file of documents, or if
    all are empty.
    """
    files: list[InputFile] = []
    for pattern in patterns:
        paths = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"--input {pattern}: no such file; give text files, a folder, or a quoted pattern")
        for path in paths:
            files += map(_inspect, _files_of(Path(path)) if Path(path).is_dir() else [path])
    if not any(file.num_bytes for file in files):
        raise UserError(f"--input {' '.join(patterns)}: all files are empty; give files with text")
    return files


def open_content(file: InputFile) -> BinaryIO:
    """The bytes of ``file``, decompressed. Reading raises ``UserError`` if the compressed data is damaged."""
    if file.compression is None:
        return open(file.path, "rb")
    return io.BufferedReader(_Decompressed(file), _BUFFER_BYTES)


def decompressor(compression: str, path: str, source: BinaryIO) -> Any:
    """An object whose ``read`` returns the decompressed bytes of ``source``, the content of ``path``."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=source)
    if compression == "bzip2":
        return bz2.BZ2File(source)
    if compression == "xz":
        return lzma.LZMAFile(source)
    try:
        from megatron.ltd.data.inputs.zstandard_stream import ZstandardReader
    except ModuleNotFoundError:
        raise UserError(
            f"--input {path}: is compressed with Zstandard, which needs the package zstandard; run pip install "
            "'megatron-ltd[data]'"
        ) from None
    return ZstandardReader(source, path)


class _Decompressed(io.RawIOBase):
    """The content of a compressed file; ``stored_position`` bytes of the file have been used for it."""

    def __init__(self, file: InputFile) -> None:
        super().__init__()
        assert file.compression is not None
        self._file = file
        self._source = open(file.path, "rb")  # noqa: SIM115 - closed by ``close``
        self._content = decompressor(file.compression, file.path, self._source)
        self._document_bytes = 0

    @property
    def stored_position(self) -> int:
        """Bytes of the file that have been read [bytes]."""
        return self._source.tell()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as there is content. Raises ``UserError`` for damaged data and endless documents."""
        try:
            content = self._content.read(len(buffer))
        except _DAMAGE as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"--input {self._file.path}: its {self._file.compression} data is damaged or cut off ({reason}); get "
                "the file again"
            ) from None
        self._count(bytes(content))
        buffer[: len(content)] = content
        return len(content)

    def _count(self, content: bytes) -> None:
        """Check the size of the document that ``content`` goes on with: a line, or the whole of a text."""
        ends = content.rfind(b"\n") + 1 if self._file.is_json else 0
        self._document_bytes = len(content) - ends + (0 if ends else self._document_bytes)
        if self._document_bytes > MOST_DOCUMENT_BYTES:
            raise UserError(
                f"--input {self._file.path}: a document in it has more than {MOST_DOCUMENT_BYTES >> 20} MB; cut it "
                "into several"
            )

    def close(self) -> None:
        self._source.close()
        super().close()


def stored_position(stream: BinaryIO) -> int:
    """How many bytes of the file that ``open_content`` opened as ``stream`` have been read."""
    raw = getattr(stream, "raw", None)
    return raw.stored_position if isinstance(raw, _Decompressed) else stream.tell()


def _inspect(path: str) -> InputFile:
    try:
        check_regular(path)  # a pipe can be read only once
        with open(path, "rb") as stream:
            start = stream.read(_START_BYTES)
        num_bytes = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"--input {path}: cannot be read ({error.strerror})") from None
    compression = _recognised(start, _COMPRESSIONS) or _recognised(start[1:], _SKIPPABLE)
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if compression is not None:
        with open_content(InputFile(path, num_bytes, False, compression)) as content:
            start = content.read(_START_BYTES)
        suffixes = [suffix for suffix in suffixes if suffix not in _COMPRESSED]
    suffix = suffixes[-1] if suffixes else ""
    table = _recognised(start, _TABLES)
    _refuse_others(path, start, suffix, compression, table)
    looks_json = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    is_json = table is None and (suffix in _JSON_SUFFIXES or (suffix != _TEXT_SUFFIX and looks_json))
    return InputFile(path, num_bytes, is_json, compression, table)


def _recognised(start: bytes, kinds: dict[bytes, str]) -> str | None:
    return next((kind for magic, kind in kinds.items() if start.startswith(magic)), None)


def _refuse_others(path: str, start: bytes, suffix: str, compression: str | None, table: str | None) -> None:
    """Raise ``UserError`` for files that would otherwise be read as one long document."""
    archive = _recognised(start, _ARCHIVES) or ("tar" if start[_TAR] == b"ustar" else None)
    if archive is not None:
        raise UserError(f"--input {path}: is a {archive} archive; unpack it and give the files in it")
    if suffix in _SEPARATED:
        raise UserError(f"--input {path}: is a table of separated values; convert it to JSON lines or Parquet")
    if table is not None and compression is not None:
        raise UserError(f"--input {path}: is {table} within {compression}; decompress it first")


def _files_of(folder: Path) -> Iterator[str]:
    """The files that a folder means."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(part.name for part in folder.iterdir() if (part / "state.json").is_file()) or ["train"]
        raise UserError(
            f"--input {folder}: is a saved dataset of several splits ({', '.join(splits)}); give one, such as "
            f"{folder / splits[0]}"
        )
    if (folder / "state.json").is_file():
        yield from _saved_dataset(folder)
        return
    wanted = (*_JSON_SUFFIXES, _TEXT_SUFFIX, *_TABLE_SUFFIXES)
    found = []
    for path in folder.rglob("*"):
        suffixes = [suffix for suffix in map(str.lower, path.suffixes) if suffix not in _COMPRESSED]
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if suffixes and suffixes[-1] in wanted and not is_hidden and path.is_file():
            found.append(str(path))
    if not found:
        raise UserError(f"--input {folder}: no file in it ends in {', '.join(wanted)}; give its files by name")
    yield from sorted(found)


def _saved_dataset(folder: Path) -> Iterator[str]:
    """The Arrow files of a dataset that Hugging Face's ``save_to_disk`` wrote, in their order."""
    try:
        listed = parse_json((folder / "state.json").read_bytes())["_data_files"]
        names = [str(entry["filename"]) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--input {folder}: its state.json does not list the files of a dataset; save it again"
        ) from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"--input {folder}: its state.json lists {name}, which is not a file in it; save it again")
        yield str(folder / name)
