"""Labelled sentences as rows of tokens, and a microbatch of them, for an encoder with a classification head.

    [CLS] sentence [SEP] padding            types 0                 one sentence
    [CLS] first [SEP] second [SEP] padding  types 0, then 1         a pair

A sentence that is longer than S loses its end; of a pair the longer sentence loses its last token until both fit.

Shapes: B samples of a microbatch, S sequence. Not here: files (``data.labelled_text``), the order of a run
(``data.epochs``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron.ltd.data.epochs import LabelledBatch, stacked_labels
from megatron.ltd.data.labelled_text import LabelledText
from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer


class LabelledRows:
    """The samples of ``labelled``: ``tokens`` and ``types`` int64 [S], ``padding`` bool [S], ``label`` an integer."""

    def __init__(self, labelled: LabelledText, tokenizer: WordPieceTokenizer, seq_length: int) -> None:
        self._labels = labelled.labels
        self._tokenizer = tokenizer
        self._seq_length = seq_length
        encoded = [[tokenizer.encode(text) for text in texts] for texts in labelled.sentences]
        self._parts = [cut(parts, seq_length - 1 - len(parts)) for parts in encoded]
        self.num_cut = sum(
            sum(map(len, parts)) < sum(map(len, whole)) for parts, whole in zip(self._parts, encoded, strict=True)
        )
        """Number of samples that lost tokens."""

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens, types = [self._tokenizer.cls], [0]
        for number, part in enumerate(self._parts[index]):
            tokens += [*part, self._tokenizer.sep]
            types += [number] * (len(part) + 1)
        num_padding = self._seq_length - len(tokens)
        return {
            "tokens": torch.tensor(tokens + [self._tokenizer.pad] * num_padding),
            "types": torch.tensor(types + [0] * num_padding),
            "padding": torch.tensor([False] * len(tokens) + [True] * num_padding),
            "label": self._labels[index],
        }


def cut(parts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    """``parts``, shortened at the ends of the longest ones to at most ``num_tokens``."""
    kept = [list(part) for part in parts]
    while sum(map(len, kept)) > num_tokens:
        max(kept, key=len).pop()
    return kept


@dataclass(frozen=True, kw_only=True)
class SentenceBatch(LabelledBatch):
    """A microbatch of sentences with a class each; ``padding_BS`` is not None. Tokens and types int64."""

    tokens_BS: Tensor
    types_BS: Tensor


def build_sentence_batch(samples: Sequence[Mapping[str, Any]], sample_ids: Sequence[int]) -> SentenceBatch:
    """Stack rows that have a ``weight`` (``data.epochs``)."""
    return SentenceBatch(
        tokens_BS=torch.stack([sample["tokens"] for sample in samples]),
        types_BS=torch.stack([sample["types"] for sample in samples]),
        padding_BS=torch.stack([sample["padding"] for sample in samples]),
        sample_ids_B=torch.tensor(sample_ids, dtype=torch.int64),
        **stacked_labels(samples),
    )
