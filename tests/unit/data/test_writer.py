"""The writer's files, read back by Megatron-Core."""

from __future__ import annotations

import os
from pathlib import Path

import numpy
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data.encode import EncodedDocuments
from megatron.ltd.data.writer import DatasetWriter
from megatron.ltd.tokenizers.byte import ByteTokenizer
from tests.support import limited_files


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (100_000, "int32")])
def test_tokens_are_as_wide_as_the_vocabulary_needs(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    writer = DatasetWriter(str(tmp_path / "d"), vocab_size)
    writer.add(EncodedDocuments(numpy.array([vocab_size - 1, 0, 5], numpy.int32), ((2,), (1,))))
    writer.add(EncodedDocuments(numpy.array([7], numpy.int32), ((1,),)))
    writer.finish(ByteTokenizer(), "text", append_eod=False)
    assert not any((tmp_path / f"d{suffix}").exists() for suffix in (".bin", ".idx", ".json"))
    writer.publish()
    dataset = IndexedDataset(str(tmp_path / "d"))
    assert [dataset[index].tolist() for index in range(3)] == [[vocab_size - 1, 0], [5], [7]]
    assert dataset[0].dtype == dtype


def test_discard_when_no_more_can_be_written(tmp_path: Path) -> None:
    writer = DatasetWriter(str(tmp_path / "d"), 257)
    writer.add(EncodedDocuments(numpy.zeros(100, numpy.int32), ((100,),)))
    with limited_files(1):
        writer.discard()
    assert os.listdir(tmp_path) == []
