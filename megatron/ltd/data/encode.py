"""Chunks of text to token ids, in this process or in workers, always in the order of the chunks.

Workers are spawned, not forked: they start without torch and without their parent's threads. Only a few chunks per
worker are in progress at a time, so that memory does not grow with the input. The result does not depend on the number
of workers.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy

from megatron.ltd.data.inputs.documents import RawChunk, parse_chunk
from megatron.ltd.data.inputs.interrupts import interrupts_held
from megatron.ltd.data.sentences import split_sentences
from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles

_CHUNKS_PER_WORKER = 4
LONGEST_SENTENCE_TOKENS = 512
"""Megatron-Core makes no sample of a document with a longer sentence, so that longer ones are split."""


@dataclass(frozen=True)
class EncodedDocuments:
    """The documents of one key: their concatenated ids (int32), and the lengths of the sentences of each.

    A document that is not split is one sentence.
    """

    ids: numpy.ndarray[Any, numpy.dtype[numpy.int32]]
    lengths: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EncodedChunk:
    """The documents of a chunk by JSON key, and the numbers of documents without text and of unusable lines."""

    documents: dict[str, EncodedDocuments]
    empty_documents: int
    bad_lines: int
    num_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class EncodeOptions:
    """How chunks are parsed and encoded; passed to each worker at its start."""

    tokenizer: TokenizerFiles
    json_keys: tuple[str, ...]
    append_eod: bool
    skip_bad_lines: bool
    split_sentences: bool = False


def encode_chunk(chunk: RawChunk, options: EncodeOptions, tokenizer: Tokenizer) -> EncodedChunk:
    """Parse and encode a chunk. Empty documents are left out, without an end of document."""
    parsed = parse_chunk(chunk, options.json_keys, options.skip_bad_lines)
    documents, empty = {}, 0
    for place, key in enumerate(options.json_keys):
        ids: list[int] = []
        lengths = []
        for texts in parsed.texts:
            sentences = _encode_document(texts[place], options, tokenizer)
            if not sentences:
                empty += 1
                continue
            for sentence in sentences:
                ids += sentence
            lengths.append(tuple(map(len, sentences)))
        documents[key] = EncodedDocuments(numpy.array(ids, dtype=numpy.int32), tuple(lengths))
    return EncodedChunk(documents, empty, parsed.bad_lines, chunk.num_bytes, chunk.stored_bytes)


def _encode_document(text: str, options: EncodeOptions, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each sentence, none empty or longer than Megatron-Core allows; without splitting, one sentence."""
    if options.split_sentences:
        return [
            ids[start : start + LONGEST_SENTENCE_TOKENS]
            for ids in map(tokenizer.encode, split_sentences(text))
            for start in range(0, len(ids), LONGEST_SENTENCE_TOKENS)
        ]
    document = tokenizer.encode(text)
    if not document:
        return []
    return [[*document, tokenizer.eod] if options.append_eod else document]


def encode_all(
    chunks: Iterable[RawChunk], options: EncodeOptions, tokenizer: Tokenizer, workers: int
) -> Generator[EncodedChunk, None, None]:
    """Encode ``chunks`` in order; with 1 worker in this process. Raises ``UserError`` at the first bad line."""
    if workers == 1:
        for chunk in chunks:
            yield encode_chunk(chunk, options, tokenizer)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(options,)
    )
    under_way: deque[Future[EncodedChunk]] = deque()
    try:
        for chunk in chunks:
            with interrupts_held():
                under_way.append(pool.submit(_encode_in_worker, chunk))
            if len(under_way) >= workers * _CHUNKS_PER_WORKER:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"--workers {workers}: a worker process died, possibly out of memory; use fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[EncodeOptions, Tokenizer] | None = None


def _start_worker(options: EncodeOptions) -> None:
    """Build a worker's tokenizer once."""
    global _worker
    _worker = (options, build_tokenizer(options.tokenizer))


def _encode_in_worker(chunk: RawChunk) -> EncodedChunk:
    assert _worker is not None
    return encode_chunk(chunk, *_worker)
