"""Joins several indexed datasets into one, for ``tools/merge_datasets.py``. Imports no torch.

    .bin    the tokens of the first, of the second, ...
    .idx    lengths one after another; starts shifted by the bytes before them, document bounds by the sequences
    .json   the card that preprocessing all of the text at once would have written

The shards of ``preprocess_data.py --shard`` therefore merge to the same files as one command over the whole input. Data
are copied in blocks, so that memory does not grow with them, and the sha256 of each part is checked.

Not here: mixing. Datasets that are sampled by weight stay separate, and follow ``--data-path``.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
from tqdm import tqdm

from megatron.ltd.data.indexed import INDEX_HEADER, INDEX_MAGIC, DatasetCard, IndexedInfo, check_indexed_dataset
from megatron.ltd.data.inputs.documents import Shard
from megatron.ltd.data.pending import PendingDataset, check_output
from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.flags import Settings, flag
from megatron.ltd.format import count_of, format_bytes

_BLOCK_BYTES = 16 << 20
_BLOCK_ENTRIES = 1 << 20
_LARGEST_VOCABULARY = 1 << 31


@dataclass(frozen=True)
class MergeConfig(Settings):
    """merging"""

    input: tuple[str, ...] = flag(
        (), metavar="PREFIX", help="datasets to join, in this order: prefixes, or the names of their .idx files",
        required="give the prefixes of the datasets to join",
    )  # fmt: skip
    output_prefix: str = flag(
        None, metavar="PREFIX", help="writes PREFIX.bin, .idx and .json",
        required="give the name of the joined dataset, such as data/corpus",
    )  # fmt: skip
    overwrite: bool = flag(False, help="replace output that is there already")

    def __post_init__(self) -> None:
        super().__post_init__()
        places = [str(Path(prefix).resolve()) for prefix in self.prefixes]
        twice = next(
            (prefix for prefix, place in zip(self.prefixes, places, strict=True) if places.count(place) > 1), None
        )
        if twice is not None:
            raise UserError(
                f"--input {twice}: is given twice; join it once, and draw from it more often by a weight in --data-path"
            )
        if str(Path(self.output_prefix).resolve()) in places:
            raise UserError(f"--output-prefix {self.output_prefix}: is one of --input; give another name")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """``--input`` without suffixes."""
        return tuple(prefix.removesuffix(".idx") for prefix in self.input)


@dataclass(frozen=True)
class MergeResult:
    """What was written."""

    prefix: str
    parts: int
    documents: int
    tokens: int
    num_bytes: int
    seconds: float
    has_card: bool

    def summary(self) -> str:
        """One line."""
        line = (
            f"{self.prefix}: {count_of(self.documents, 'document')}, {self.tokens:,} tokens of "
            f"{count_of(self.parts, 'dataset')}, {format_bytes(self.num_bytes)} in {self.seconds:.1f} s "
            f"({format_bytes(self.num_bytes / self.seconds)}/s)"
        )
        return line if self.has_card else f"{line}; without cards (.json) their tokenizer is not checked"


def merge(config: MergeConfig) -> MergeResult:
    """Join ``--input`` into ``--output-prefix``.

    Raises ``UserError`` for a part that is missing, cut short, damaged or made otherwise than the first (tokenizer,
    token type, end of document), and for output that exists (without ``--overwrite``) or cannot be written. A failure
    or Ctrl-C leaves no file behind, and what was there intact.
    """
    started = time.monotonic()
    output_prefix = config.output_prefix
    check_output(output_prefix, [output_prefix], config.overwrite)
    parts = [
        check_indexed_dataset(prefix, _LARGEST_VOCABULARY, flag_spelling="--input", read_tokens=False)
        for prefix in config.prefixes
    ]
    card = _common_card(parts)
    files = PendingDataset(output_prefix)
    with writes_to(f"--output-prefix {output_prefix}"), ExitStack() as cleanup:
        cleanup.callback(files.discard)
        bin_sha256 = _join_tokens(parts, files.temporary[".bin"])
        _join_indices(parts, files.temporary[".idx"])
        if card is not None:
            replace(card, bin_sha256=bin_sha256).write(files.temporary[".json"])
        files.publish()
        num_bytes = files.final[".bin"].stat().st_size
    return MergeResult(
        prefix=output_prefix,
        parts=len(parts),
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts),
        num_bytes=num_bytes,
        seconds=max(time.monotonic() - started, 1e-9),
        has_card=card is not None,
    )


def _common_card(parts: Sequence[IndexedInfo]) -> DatasetCard | None:
    """The card of the whole, but for its sha256; None if no part has one. Raises ``UserError``."""
    first = parts[0]
    for part in parts:
        if (part.card is None) != (first.card is None):
            without, having = (part.prefix, first.prefix) if part.card is None else (first.prefix, part.prefix)
            raise UserError(
                f"--input {without}: {without}.json does not exist, but that of {having} does, so that their "
                "tokenizers cannot be compared; run preprocess_data.py again, or remove all .json files"
            )
        if part.card is not None and first.card is not None:
            for name, what in (("tokenizer_fingerprint", "another tokenizer"), ("append_eod", "another --append-eod")):
                if getattr(part.card, name) != getattr(first.card, name):
                    raise UserError(
                        f"--input {part.prefix}: was made with {what} than {first.prefix} ({_shown(part.card)}, not "
                        f"{_shown(first.card)}); run preprocess_data.py again with the same settings"
                    )
        if part.dtype != first.dtype:
            raise UserError(
                f"--input {part.prefix}: has {part.dtype}, but {first.prefix} has {first.dtype}: they were made with "
                "different tokenizers; run preprocess_data.py again with one"
            )
    if first.card is None:
        return None
    _check_shards(parts)
    return replace(
        first.card,
        shard=None,
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts),
        json_key=" ".join(dict.fromkeys(part.card.json_key for part in parts if part.card is not None)),
    )


def _check_shards(parts: Sequence[IndexedInfo]) -> None:
    """Raises ``UserError`` unless the shards of one input are all there and in their order, one after another."""
    due: Shard | None = None  # the shard that must be next
    for part in parts:
        shard = None if part.card is None or part.card.shard is None else Shard.parse(part.card.shard)
        if shard != due if due is not None else shard is not None and shard.number > 1:
            found = "no shard" if shard is None else f"shard {shard.number}/{shard.count}"
            raise _shard_missing(f"{part.prefix} is {found}", due)
        due = None if shard is None or shard.number == shard.count else Shard(shard.number + 1, shard.count)
    if due is not None:
        raise _shard_missing("nothing follows", due)


def _shard_missing(found: str, due: Shard | None) -> UserError:
    wanted = "shard 1 of its input" if due is None else f"shard {due.number}/{due.count}"
    return UserError(
        f"--input: {found}, but {wanted} must be next; give all shards of an input in order (a pattern has 10 before 2)"
    )


def _shown(card: DatasetCard) -> str:
    end = "with" if card.append_eod else "without"
    return f"{card.tokenizer}, fingerprint {card.tokenizer_fingerprint[:12]}, {end} --append-eod"


def _join_tokens(parts: Sequence[IndexedInfo], target: Path) -> str:
    """Write the .bin files one after another; the sha256 of the whole. Raises ``UserError`` for a damaged part."""
    whole = hashlib.sha256()
    sizes = [Path(f"{part.prefix}.bin").stat().st_size for part in parts]
    is_terminal = sys.stderr.isatty()
    with (
        target.open("wb") as stream,
        tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="joining", disable=not is_terminal) as bar,
    ):
        for number, (part, num_bytes) in enumerate(zip(parts, sizes, strict=True), start=1):
            own = hashlib.sha256()
            with open(f"{part.prefix}.bin", "rb") as source:
                while block := source.read(_BLOCK_BYTES):
                    stream.write(block)
                    whole.update(block)
                    own.update(block)
                    bar.update(len(block))
            if part.card is not None and own.hexdigest() != part.card.bin_sha256:
                raise UserError(
                    f"--input {part.prefix}: {part.prefix}.bin does not match its card (.json): it is damaged or from "
                    "another run; run preprocess_data.py again"
                )
            if not is_terminal and len(parts) > 1:
                print(f"{number} of {len(parts)}: {part.prefix}, {format_bytes(num_bytes)}", flush=True)
    return whole.hexdigest()


def _join_indices(parts: Sequence[IndexedInfo], target: Path) -> None:
    """Write the joined .idx (its layout is that of ``data.indexed``)."""
    with open(f"{parts[0].prefix}.idx", "rb") as source:
        _, version, dtype_code, _, _ = INDEX_HEADER.unpack(source.read(INDEX_HEADER.size))
    sequences, documents = sum(part.sequences for part in parts), sum(part.documents for part in parts)
    with target.open("wb") as stream:
        stream.write(INDEX_HEADER.pack(INDEX_MAGIC, version, dtype_code, sequences, documents + 1))
        for part in parts:
            for lengths in _blocks(part, "<i4", INDEX_HEADER.size, part.sequences):
                stream.write(lengths.tobytes())
        bytes_before = 0
        for part in parts:
            for starts in _blocks(part, "<i8", INDEX_HEADER.size + 4 * part.sequences, part.sequences):
                stream.write((starts + bytes_before).tobytes())
            bytes_before += part.tokens * numpy.dtype(part.dtype).itemsize
        sequences_before = 0
        stream.write(numpy.zeros(1, "<i8").tobytes())
        for part in parts:  # the first bound of each is where the one before it ends
            for bounds in _blocks(part, "<i8", INDEX_HEADER.size + 12 * part.sequences + 8, part.documents):
                stream.write((bounds + sequences_before).tobytes())
            sequences_before += part.sequences


def _blocks(part: IndexedInfo, dtype: str, offset_bytes: int, count: int) -> Iterator[numpy.ndarray[Any, Any]]:
    """``count`` numbers of the part's .idx from ``offset_bytes`` on, some at a time."""
    with open(f"{part.prefix}.idx", "rb") as source:
        source.seek(offset_bytes)
        while count:
            block = numpy.fromfile(source, dtype, min(count, _BLOCK_ENTRIES))
            assert len(block), f"{part.prefix}.idx has become shorter"
            yield block
            count -= len(block)
