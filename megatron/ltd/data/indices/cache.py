"""Checks of the indices that Megatron-Core caches for its datasets (``.npy``), so that only right ones are used.

Anyone who can write to the folder of the data, or to ``--data-cache-path``, can put a file there, and Megatron-Core
reads it with pickles allowed and trusts its numbers. Here the files are read as numbers only (``numbers_only``), and
the process that would build them checks them first: it removes those that do not fit the data, so that they are built
again (``remove_unless``). A file that is changed between the check and its use can spoil an index or end the run, but
runs no code.

    GPT    document index  [D * epochs]  every document once per epoch
           sample index    [N + 1, 2]    where sample n begins, at token n * S of the concatenated documents: index into
                                         the document index, and token in the document
           shuffle index   [N]           every sample once
    BERT   sample index    [N, 3]        first sentence and end, within a document; number of tokens
    blend  dataset index, sample index   [N] each: a sample of a dataset
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

_Index = NDArray[np.integer[Any]]
_SMALL_BYTES = 1 << 20
_ROWS = 1 << 20
"""Rows that are checked at a time."""


@contextmanager
def numbers_only() -> Iterator[None]:
    """Within the block ``numpy.load`` maps arrays of numbers only, and raises ``OSError`` for anything else.

    Small ones are read, since each that is mapped keeps a file open.
    """
    load = np.load
    np.load = lambda path, **_: _numbers(path)
    try:
        yield
    finally:
        np.load = load


def _numbers(path: str | Path) -> _Index:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _SMALL_BYTES:
                return open_memmap(path, mode="r")
            if npy.read_magic(file) != (1, 0):
                raise ValueError("of a format that is not numpy.save's")
            shape, is_fortran, dtype = npy.read_array_header_1_0(file)
            if dtype.hasobject:
                raise ValueError("it holds objects")
            return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if is_fortran else "C")
    except ValueError as error:
        raise OSError(f"{path} is not an array of numbers: {error}") from None


def remove_unless(is_right: Callable[..., bool], folder: Path, stem: str, names: Sequence[str]) -> None:
    """Remove the files of a wrong index: ``<stem>-<name>.npy`` and a description.

    ``is_right`` checks the arrays. An index is also wrong if a file is missing, a link, or not an array; the other
    files are then removed too, because Megatron-Core would write through a link. Raises ``OSError`` if that fails.
    """
    text = folder / f"{stem}-description.txt"
    paths = [folder / f"{stem}-{name}.npy" for name in names]
    try:
        are_files = all(path.is_file() and not path.is_symlink() for path in (text, *paths))
        if are_files and is_right(*map(_numbers, paths)):
            return
    except Exception:  # a file made by hand can fail in any way
        pass
    for path in (text, *paths):
        path.unlink(missing_ok=True)


def is_gpt_index(
    document: _Index,
    sample: _Index,
    shuffle: _Index,
    *,
    documents: _Index,
    lengths: _Index,
    seq_length: int,
    num_samples: int | None,
) -> bool:
    """Whether these are indices of at least ``num_samples`` samples of ``documents``, a range of the data's documents.

    ``lengths``: the tokens of all documents of the data.
    """
    if not (document.dtype == np.int32 and document.ndim == 1 and len(document) % len(documents) == 0):
        return False
    if not (sample.dtype in (np.int32, np.int64) and sample.ndim == 2 and sample.shape[1] == 2):
        return False
    if not _is_permutation(shuffle, len(sample) - 1) or len(shuffle) < (num_samples or 1):
        return False
    if not _within(document, documents[0], documents[-1] + 1):
        return False
    times = np.bincount(document - documents[0], minlength=len(documents))
    return bool((times == len(document) // len(documents)).all()) and _are_consecutive(
        sample, lengths[document], seq_length
    )


def _are_consecutive(sample: _Index, lengths: _Index, seq_length: int) -> bool:
    """Whether sample n begins at token n * S of documents of these lengths, and the last one ends within them."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    for first in range(0, len(sample), _ROWS):
        document, token = np.asarray(sample[first : first + _ROWS], dtype=np.int64).T
        if not (_within(document, 0, len(lengths)) and (token >= 0).all() and (token <= lengths[document]).all()):
            return False
        expected = np.arange(first, first + len(document), dtype=np.int64) * seq_length
        if not (starts[document] + token == np.minimum(expected, starts[-1] - 1)).all():
            return False
    return True


def is_bert_index(sample: _Index, *, document_bounds: _Index, seq_length: int, num_samples: int | None) -> bool:
    """Whether these are at least ``num_samples`` samples, each of sentences of one document."""
    if not (sample.dtype in (np.uint32, np.uint64) and sample.ndim == 2 and sample.shape[1] == 3):
        return False
    if len(sample) < (num_samples or 1):
        return False
    for first in range(0, len(sample), _ROWS):
        start, end, num_tokens = np.asarray(sample[first : first + _ROWS], dtype=np.int64).T
        inside = _within(start, document_bounds[0], document_bounds[-1]) and _within(num_tokens, 1, seq_length + 1)
        if not inside:
            return False
        document_end = document_bounds[np.searchsorted(document_bounds, start, side="right")]
        if not ((start < end) & (end <= document_end)).all():
            return False
    return True


def is_blend_index(dataset: _Index, sample: _Index, *, sizes: Sequence[int], num_samples: int) -> bool:
    """Whether these are ``num_samples`` samples of datasets of these sizes."""
    if not (dataset.dtype == np.int16 and sample.dtype == np.int64 and dataset.shape == sample.shape == (num_samples,)):
        return False
    ends = np.asarray(sizes)
    return _within(dataset, 0, len(ends)) and bool(((sample >= 0) & (sample < ends[dataset])).all())


def _within(values: _Index, first: int, end: int) -> bool:
    return len(values) > 0 and bool(values.min() >= first) and bool(values.max() < end)


def _is_permutation(values: _Index, count: int) -> bool:
    if values.dtype not in (np.uint32, np.int64) or values.shape != (count,) or not _within(values, 0, count):
        return False
    seen = np.zeros(count, dtype=bool)
    seen[values] = True
    return bool(seen.all())
