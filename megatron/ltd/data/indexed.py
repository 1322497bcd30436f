"""Checks of an indexed dataset (PREFIX.bin and PREFIX.idx) before a run uses it. Imports no torch.

    .idx   "MMIDIDX\\0\\0" | u64 version = 1 | u8 dtype code | u64 sequences | u64 document bounds
           | i32 length [tokens] of each sequence | i64 start [bytes] of each sequence | i64 document bounds
    .bin   the tokens of all sequences, one after another
    .json  ours, beside them (``DatasetCard``): which tokenizer made the tokens, how many, and their sha256

The format is Megatron-Core's (``megatron.core.datasets.indexed_dataset``), whose reader does not check it: a truncated
.bin causes a read error in the middle of a run, and a file from another tokenizer causes no error at all.

Every process of a run reads headers and sizes (``describe``), and one of them the indices and a sample of the token ids
(``check_content``): 64 MiB for all datasets together, and both ends of each, because a corpus can have terabytes. An id
that the sample misses still fails in the embedding. Not here: reading samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import read_small

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
SAMPLE_BYTES = 64 << 20
_WINDOW_BYTES, _LEAST_WINDOW_BYTES = 1 << 20, 1 << 16
_PIECE = 1 << 20
"""Numbers of an index that are checked at a time."""


@dataclass(frozen=True)
class DatasetCard:
    """The .json file beside an indexed dataset: what made it, and what it holds."""

    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    documents: int
    tokens: int
    bin_sha256: str
    json_key: str
    append_eod: bool
    shard: str | None = None
    """The shard I/N of the input that it was made from; None: all of the input."""

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        entries = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> DatasetCard | None:
        """The card at ``path``; None if there is none, as for other programs' data. Raises ``UserError`` if damaged."""
        try:
            fields = parse_json(read_small(path))
            names = [field.name for field in dataclasses.fields(cls)]
            return cls(**{name: fields[name] for name in names if name in fields or name != "shard"})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: is not a dataset card ({error}); run preprocess_data.py again, or remove the file"
            ) from None


@dataclass(frozen=True)
class IndexedInfo:
    """The content of an indexed dataset. ``fingerprint`` (hex) changes with the data; it is a key of caches."""

    prefix: str
    documents: int
    sequences: int
    tokens: int
    dtype: str
    card: DatasetCard | None
    fingerprint: str


def check_indexed_dataset(
    prefix: str,
    vocab_size: int,
    tokenizer_fingerprint: str | None = None,
    *,
    flag_spelling: str = "--data-path",
    read_tokens: bool = True,
) -> IndexedInfo:
    """``describe`` and ``check_content`` in one; ``read_tokens`` False leaves out the sample of token ids."""
    info = describe(prefix, vocab_size, tokenizer_fingerprint, flag_spelling=flag_spelling)
    check_content(info, vocab_size if read_tokens else None, flag_spelling=flag_spelling)
    return info


def describe(
    prefix: str, vocab_size: int, tokenizer_fingerprint: str | None = None, *, flag_spelling: str = "--data-path"
) -> IndexedInfo:
    """What PREFIX.bin and PREFIX.idx hold, from their sizes, the header and the end of the index.

    ``vocab_size`` is that of the tokenizer; ``tokenizer_fingerprint`` is compared with that of the data, if both are
    known. Raises ``UserError`` if a file is missing, empty, truncated, of another format or made with another
    tokenizer.
    """
    path = f"{flag_spelling} {prefix}"
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    sizes = {}
    for file in (idx_path, bin_path):
        if not file.is_file():
            raise UserError(f"{path}: {file} does not exist; use the prefix that preprocess_data.py wrote")
        sizes[file] = file.stat().st_size
        if sizes[file] == 0:
            raise UserError(f"{path}: {file} is empty; run preprocess_data.py again")
    dtype, sequences, bounds, bin_bytes = _read_header(path, idx_path, sizes[idx_path])
    if sizes[bin_path] != bin_bytes:
        raise UserError(
            f"{path}: {bin_path} has {sizes[bin_path]} bytes, but {idx_path.name} needs {bin_bytes}; one of "
            "them is truncated or from another run: run preprocess_data.py again"
        )
    card = DatasetCard.read(Path(f"{prefix}.json"))
    if card is not None:
        _check_card(path, card, vocab_size, tokenizer_fingerprint)
    return IndexedInfo(
        prefix=prefix,
        documents=bounds - 1,
        sequences=sequences,
        tokens=bin_bytes // dtype.itemsize,
        dtype=dtype.name,
        card=card,
        fingerprint=_fingerprint(sizes, card),
    )


def check_content(
    info: IndexedInfo,
    vocab_size: int | None,
    *,
    flag_spelling: str = "--data-path",
    sample_bytes: int = SAMPLE_BYTES,
) -> None:
    """Read the whole index, and token ids in about ``sample_bytes`` unless ``vocab_size`` is None; one process of a run
    does. Raises ``UserError`` for an index that contradicts itself, and for an id that is not in the vocabulary.
    """
    path = f"{flag_spelling} {info.prefix}"
    _check_index(path, info)
    if vocab_size is not None:
        _check_token_ids(path, info, vocab_size, sample_bytes)


def tokens_in(info: IndexedInfo, sequences: range) -> int:
    """Number of tokens in some sequences of a dataset."""
    if len(sequences) == info.sequences:
        return info.tokens
    place = INDEX_HEADER.size + 4 * sequences.start
    lengths = numpy.fromfile(f"{info.prefix}.idx", "<i4", count=len(sequences), offset=place)
    return int(lengths.sum(dtype=numpy.int64))


def _read_header(path: str, idx_path: Path, idx_bytes: int) -> tuple[numpy.dtype[Any], int, int, int]:
    """The token type, the numbers of sequences and of document bounds, and the size of the .bin file that the last
    sequence implies. Raises ``UserError``; ``path`` begins its messages.
    """
    again = "use data that preprocess_data.py wrote"
    rerun = "run preprocess_data.py again"
    with idx_path.open("rb") as file:
        header = file.read(INDEX_HEADER.size)
        if not header.startswith(INDEX_MAGIC[: len(header)]):
            raise UserError(f"{path}: {idx_path} is not a Megatron index (it does not start with MMIDIDX); {again}")
        if len(header) < INDEX_HEADER.size:
            raise UserError(f"{path}: {idx_path} is truncated at {idx_bytes} bytes; {rerun}")
        _, version, code, sequences, bounds = INDEX_HEADER.unpack(header)
        if version != 1:
            raise UserError(
                f"{path}: {idx_path} has format version {version}, but only version 1 is supported; {again}"
            )
        if code not in _TOKEN_TYPES:
            raise UserError(f"{path}: {idx_path} has values of type code {code}, which are not token ids; {again}")
        wanted = INDEX_HEADER.size + 12 * sequences + 8 * bounds
        if idx_bytes < wanted:
            raise UserError(f"{path}: {idx_path} is truncated: {idx_bytes} of {wanted} bytes; {rerun}")
        if idx_bytes > wanted:
            raise UserError(f"{path}: {idx_path} has {idx_bytes - wanted} bytes too many for token sequences; {again}")
        if sequences == 0:
            raise UserError(f"{path}: {idx_path} has no documents; run preprocess_data.py on text")
        file.seek(INDEX_HEADER.size + 4 * (sequences - 1))
        (length,) = struct.unpack("<i", file.read(4))
        file.seek(INDEX_HEADER.size + 12 * sequences - 8)
        (start,) = struct.unpack("<q", file.read(8))
    if min(length, start) < 0:
        raise _corrupted(path, idx_path)
    dtype = numpy.dtype(_TOKEN_TYPES[code])
    return dtype, sequences, bounds, start + length * dtype.itemsize


def _check_index(path: str, info: IndexedInfo) -> None:
    idx_path, sequences, token_bytes = Path(f"{info.prefix}.idx"), info.sequences, numpy.dtype(info.dtype).itemsize
    with idx_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = INDEX_HEADER.size
        lengths = numpy.frombuffer(content, "<i4", sequences, place)
        starts = numpy.frombuffer(content, "<i8", sequences, place + 4 * sequences)
        documents = numpy.frombuffer(content, "<i8", info.documents + 1, place + 12 * sequences)
        is_right = (
            _follow(starts, lengths, token_bytes)
            and _divide(documents, sequences)
            and int(lengths.sum(dtype=numpy.int64)) == info.tokens
        )
        del lengths, starts, documents  # a map cannot be closed while arrays show it
    if not is_right:
        raise _corrupted(path, idx_path)


def _corrupted(path: str, idx_path: Path) -> UserError:
    return UserError(f"{path}: {idx_path} is corrupted: it is inconsistent; run preprocess_data.py again")


def _follow(starts: NDArray[Any], lengths: NDArray[Any], token_bytes: int) -> bool:
    """Whether each sequence starts where the one before it ends."""
    pieces = (slice(first, first + _PIECE + 1) for first in range(0, len(starts), _PIECE))
    follow = all(
        numpy.array_equal(numpy.diff(starts[piece]), lengths[piece][:-1].astype(numpy.int64) * token_bytes)
        for piece in pieces
    )
    return follow and starts[0] == 0 and lengths.min() >= 0


def _divide(documents: NDArray[Any], sequences: int) -> bool:
    """Whether the bounds of the documents rise from 0 to the number of sequences."""
    pieces = (slice(first, first + _PIECE + 1) for first in range(0, len(documents), _PIECE))
    rise = all((numpy.diff(documents[piece]) >= 0).all() for piece in pieces)
    return rise and len(documents) > 0 and documents[0] == 0 and documents[-1] == sequences


def _check_card(path: str, card: DatasetCard, vocab_size: int, tokenizer_fingerprint: str | None) -> None:
    if tokenizer_fingerprint is not None and card.tokenizer_fingerprint != tokenizer_fingerprint:
        raise UserError(
            f"{path}: was made with another tokenizer ({card.tokenizer}, vocabulary {card.vocab_size}, fingerprint "
            f"{card.tokenizer_fingerprint[:12]}) than this run's (vocabulary {vocab_size}, fingerprint "
            f"{tokenizer_fingerprint[:12]}); use the tokenizer of the data, or run preprocess_data.py again"
        )
    if card.vocab_size > vocab_size:
        raise UserError(
            f"{path}: was made with a vocabulary of {card.vocab_size} tokens, but this run's has {vocab_size}; use the "
            "tokenizer of the data, or run preprocess_data.py again"
        )


def _check_token_ids(path: str, info: IndexedInfo, vocab_size: int, sample_bytes: int) -> None:
    """Look for ids outside the vocabulary in about ``sample_bytes``, first and last window included."""
    dtype = numpy.dtype(info.dtype)
    window = min(_WINDOW_BYTES, max(_LEAST_WINDOW_BYTES, sample_bytes // 2)) // dtype.itemsize
    num_windows = max(2, sample_bytes // (window * dtype.itemsize))
    if info.tokens <= window * num_windows:
        starts = range(0, info.tokens, window)
    else:
        starts = [index * (info.tokens - window) // (num_windows - 1) for index in range(num_windows)]  # type: ignore[assignment]
    for start in starts:
        part = numpy.fromfile(f"{info.prefix}.bin", dtype, window, offset=start * dtype.itemsize)
        bad = int(part.max()) if part.max() >= vocab_size else int(part.min())
        if not 0 <= bad < vocab_size:
            raise UserError(
                f"{path}: {info.prefix}.bin has token id {bad}, but the tokenizer's vocabulary has {vocab_size} (ids 0 "
                f"to {vocab_size - 1}); use the tokenizer of the data"
            )


def _fingerprint(sizes: Mapping[Path, int], card: DatasetCard | None) -> str:
    """A sha256 of the sizes and both ends of both files and, if known, of the sha256 of all data."""
    digest = hashlib.sha256(card.bin_sha256.encode() if card else b"")
    for path, size in sorted(sizes.items()):
        digest.update(struct.pack("<Q", size))
        with path.open("rb") as file:
            digest.update(file.read(_WINDOW_BYTES))
            file.seek(max(0, size - _WINDOW_BYTES))
            digest.update(file.read(_WINDOW_BYTES))
    return digest.hexdigest()
