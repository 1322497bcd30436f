"""Damaged, foreign and mismatched datasets are named before a run starts."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from megatron.ltd.data.config import DataConfig
from megatron.ltd.data.indexed import SAMPLE_BYTES, check_content, check_indexed_dataset, describe
from megatron.ltd.data.sources import check_contents, check_sources
from megatron.ltd.tokenizers.byte import ByteTokenizer
from tests.support_errors import refused

VOCAB = ByteTokenizer.vocab_size
HEADER_BYTES = 34


def core_dataset(prefix: Path, documents: list[list[int]], dtype: type = numpy.int32) -> str:
    """A dataset as Megatron-LM's own tools write it, without our card of the data."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def test_the_contents_of_a_dataset(write_dataset: Callable[..., str]) -> None:
    prefix = write_dataset(["one", "twelve"])
    info = check_indexed_dataset(prefix, VOCAB, ByteTokenizer.fingerprint)
    assert (info.documents, info.sequences, info.tokens, info.dtype) == (2, 2, 11, "uint16")
    assert info.card is not None and info.card.tokenizer_fingerprint == ByteTokenizer.fingerprint
    core = IndexedDataset(prefix)
    assert core.sequence_lengths.tolist() == [4, 7] and len(core.document_indices) - 1 == info.documents


@pytest.mark.parametrize("dtype", [numpy.uint8, numpy.uint16, numpy.int32, numpy.int64])
def test_data_made_by_megatrons_tools_are_accepted(dtype: type, tmp_path: Path) -> None:
    info = check_indexed_dataset(core_dataset(tmp_path / "d", [[1, 2], [3]], dtype), 4)
    assert (info.tokens, info.dtype, info.card) == (3, dtype.__name__, None)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one = check_indexed_dataset(core_dataset(tmp_path / "a", [[1, 2], [3]]), 9).fingerprint
    same = check_indexed_dataset(core_dataset(tmp_path / "b", [[1, 2], [3]]), 9).fingerprint
    other_tokens = check_indexed_dataset(core_dataset(tmp_path / "c", [[1, 2], [4]]), 9).fingerprint
    other_documents = check_indexed_dataset(core_dataset(tmp_path / "d", [[1], [2, 3]]), 9).fingerprint
    assert one == same and len({one, other_tokens, other_documents}) == 3


def overwrite(path: str, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


DAMAGE = {
    "no idx": (lambda prefix: os.remove(f"{prefix}.idx"), ("d.idx",)),
    "no bin": (lambda prefix: os.remove(f"{prefix}.bin"), ("d.bin",)),
    "empty idx": (lambda prefix: os.truncate(f"{prefix}.idx", 0), ("d.idx",)),
    "empty bin": (lambda prefix: os.truncate(f"{prefix}.bin", 0), ("d.bin",)),
    "short header": (lambda prefix: os.truncate(f"{prefix}.idx", 20), ("d.idx", 20)),
    "short idx": (lambda prefix: os.truncate(f"{prefix}.idx", 70), ("d.idx", 70, 82)),
    "short bin": (lambda prefix: os.truncate(f"{prefix}.bin", 8), ("d.bin", 8, "d.idx", 12)),
    "long bin": (lambda prefix: os.truncate(f"{prefix}.bin", 16), ("d.bin", 16, "d.idx", 12)),
    "long idx": (lambda prefix: os.truncate(f"{prefix}.idx", 84), ("d.idx", 2)),
    "magic": (lambda prefix: overwrite(f"{prefix}.idx", 0, b"PK\3\4"), ("d.idx", "MMIDIDX")),
    "version": (lambda prefix: overwrite(f"{prefix}.idx", 9, b"\2"), ("d.idx", "version 2", "version 1")),
    "type": (lambda prefix: overwrite(f"{prefix}.idx", 17, b"\6"), ("d.idx", "code 6")),
    "start": (lambda prefix: overwrite(f"{prefix}.idx", 42, struct.pack("<q", 4)), ("d.idx", "corrupted")),
    "bounds": (lambda prefix: overwrite(f"{prefix}.idx", 74, struct.pack("<q", 9)), ("d.idx", "corrupted")),
    "negative length": (
        lambda prefix: overwrite(f"{prefix}.idx", 34, struct.pack("<ii", 4, -1)),
        ("d.idx", "corrupted"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    prefix = core_dataset(tmp_path / "d", [[1, 2], [3]])
    # 34 bytes of header, then 2 lengths, 2 starts and 3 bounds: 8 + 16 + 24.
    assert os.path.getsize(f"{prefix}.idx") == 82
    change, names = DAMAGE[damage]
    change(prefix)
    with refused(f"--valid-data-path {prefix}", *names) as error:
        check_indexed_dataset(prefix, VOCAB, flag_spelling="--valid-data-path")
    assert str(error.value).startswith(f"--valid-data-path {prefix}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [9, -1])
def test_ids_outside_the_vocabulary_are_refused(bad: int, tmp_path: Path) -> None:
    prefix = core_dataset(tmp_path / "d", [[1, bad], [3]])
    with refused(bad, 9, 0, 8):
        check_indexed_dataset(prefix, 9)
    assert check_indexed_dataset(prefix, 9, read_tokens=False).tokens == 3


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(
    ("num_tokens", "sample_bytes", "unseen"),
    [(80 << 20, SAMPLE_BYTES, (1 << 20) + 9), (1 << 18, SAMPLE_BYTES // 2400, 1 << 17)],
    ids=["large data", "one of thousands of datasets"],
)
def test_both_ends_are_sampled(place: int, num_tokens: int, sample_bytes: int, unseen: int, tmp_path: Path) -> None:
    tokens = numpy.zeros(num_tokens, dtype=numpy.uint8)
    tokens[place], tokens[unseen] = 150, 200
    builder = IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=numpy.uint8)
    builder.add_document(tokens, [tokens.size])
    builder.finalize(str(tmp_path / "d.idx"))
    info = describe(str(tmp_path / "d"), 100)
    with refused(150, 100):
        check_content(info, 100, sample_bytes=sample_bytes)
    check_content(info, 151, sample_bytes=sample_bytes)
    with refused(200, 151):
        check_content(info, 151, sample_bytes=num_tokens)


def test_only_one_process_reads_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start inside the index is wrong, which neither its header nor its end shows."""
    prefix = core_dataset(tmp_path / "d", [[1, 2], [3], [4]])
    overwrite(f"{prefix}.idx", HEADER_BYTES + 3 * 4 + 8, struct.pack("<q", 9))
    config, tokenizer = DataConfig(data_path=(prefix,)), ByteTokenizer()
    sources = check_sources(config, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("megatron.ltd.data.sources.is_first_rank", lambda: False)
        check_contents(config, sources, tokenizer)
    with refused(f"--data-path {prefix}", "d.idx", "corrupted"):
        check_contents(config, sources, tokenizer)


def test_data_of_another_tokenizer_are_refused(write_dataset: Callable[..., str]) -> None:
    prefix = write_dataset(["text"])
    with refused("ByteTokenizer", 257):
        check_indexed_dataset(prefix, VOCAB, "0" * 64)
    with refused(257, 256):
        check_indexed_dataset(prefix, 256)


@pytest.mark.parametrize("content", ["{}", "[]", "not json", json.dumps({"tokenizer": "x"})])
def test_a_file_that_is_not_a_card(content: str, write_dataset: Callable[..., str]) -> None:
    prefix = write_dataset(["text"])
    Path(f"{prefix}.json").write_text(content)
    with refused(f"{prefix}.json", "preprocess_data.py"):
        check_indexed_dataset(prefix, VOCAB)


@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_every_number_of_an_index_is_checked(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit in any length or start is found, and any bound that is too large, wherever pieces end."""
    monkeypatch.setattr("megatron.ltd.data.indexed._PIECE", piece)
    prefix = core_dataset(tmp_path / "d", [[1, 2], [3], [4, 5, 6], [7]])
    assert check_indexed_dataset(prefix, 9).documents == 4
    whole = Path(f"{prefix}.idx").read_bytes()
    bounds = HEADER_BYTES + 4 * (4 + 8)
    for place in range(HEADER_BYTES, len(whole), 4):
        for bit in (1, 1 << 29) if place < bounds else (1 << 29,):
            Path(f"{prefix}.idx").write_bytes(whole)
            overwrite(f"{prefix}.idx", place, struct.pack("<I", struct.unpack_from("<I", whole, place)[0] ^ bit))
            with refused(f"--data-path {prefix}"):
                check_indexed_dataset(prefix, 9)
