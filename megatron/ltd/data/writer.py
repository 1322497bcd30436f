"""Writes an indexed dataset of encoded documents with Megatron-Core's builder, under temporary names (``pending``)."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from megatron.ltd.data.encode import EncodedDocuments
from megatron.ltd.data.indexed import DatasetCard
from megatron.ltd.data.pending import PendingDataset
from megatron.ltd.tokenizers.base import Tokenizer


class DatasetWriter(PendingDataset):
    """Megatron-Core's builder with a checksum; token ids are stored in the smallest type that Megatron-Core offers."""

    def __init__(self, prefix: str, vocab_size: int) -> None:
        super().__init__(prefix)
        self._dtype = DType.optimal_dtype(vocab_size)
        self._digest = hashlib.sha256()
        self._builder = IndexedDatasetBuilder(str(self.temporary[".bin"]), dtype=self._dtype)
        self.documents = 0
        self.tokens = 0

    def add(self, documents: EncodedDocuments) -> None:
        """Append documents, a sequence for each of their sentences."""
        ids = documents.ids.astype(self._dtype)
        self._digest.update(ids.tobytes())
        start = 0
        for sentences in documents.lengths:
            length = sum(sentences)
            self._builder.add_document(ids[start : start + length], list(sentences))
            start += length
        self.documents += len(documents.lengths)
        self.tokens += start

    def finish(self, tokenizer: Tokenizer, json_key: str, append_eod: bool, shard: str | None = None) -> DatasetCard:
        """Write the index and the card under their temporary names; ``publish`` makes them visible."""
        self._builder.finalize(str(self.temporary[".idx"]))
        card = DatasetCard(
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            documents=self.documents,
            tokens=self.tokens,
            bin_sha256=self._digest.hexdigest(),
            json_key=json_key,
            append_eod=append_eod,
            shard=shard,
        )
        card.write(self.temporary[".json"])
        return card

    def discard(self) -> None:
        with suppress(OSError):  # a full disk takes no more of what is buffered
            self._builder.data_file.close()
        super().discard()
