"""Labelled sentences as tokens: the layout of a row, and truncation."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.ltd.data.epochs import ShuffledEpochs
from megatron.ltd.data.labelled_rows import LabelledRows, build_sentence_batch, cut
from megatron.ltd.data.labelled_text import LabelledText
from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "##d"]
TOKENIZER = WordPieceTokenizer("BertWordPieceLowerCase", "\n".join(WORDS).encode(), "vocab.txt")


def rows(*sentences: tuple[str, ...], seq_length: int = 8) -> LabelledRows:
    labels = tuple(number % 2 for number in range(len(sentences)))
    labelled = LabelledText(sentences, labels, ("no", "yes"), hashlib.sha256().hexdigest())
    return LabelledRows(labelled, TOKENIZER, seq_length)


def spelled(row: dict[str, torch.Tensor]) -> str:
    return " ".join(WORDS[token] for token in row["tokens"].tolist())


def test_single_sentences_and_pairs() -> None:
    single, pair = rows(("A bd",))[0], rows(("a b", "c"))[0]
    assert spelled(single) == "[CLS] a b ##d [SEP] [PAD] [PAD] [PAD]"
    assert single["types"].tolist() == [0] * 8 and single["padding"].tolist() == [False] * 5 + [True] * 3
    assert spelled(pair) == "[CLS] a b [SEP] c [SEP] [PAD] [PAD]"
    assert pair["types"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


def test_long_sentences_are_truncated_at_the_end_and_counted() -> None:
    found = rows(("a b c d a b c d",), ("a b",), ("a b c d a", "c d"))
    assert [spelled(found[number]) for number in (0, 2)] == [
        "[CLS] a b c d a b [SEP]",
        "[CLS] a b c [SEP] c d [SEP]",
    ]
    assert found.num_cut == 2 and len(found) == 3


@given(st.lists(st.integers(0, 9), min_size=1, max_size=2), st.integers(1, 12))
def test_the_longer_sentence_is_truncated_first(lengths: list[int], num_tokens: int) -> None:
    parts = [list(range(length)) for length in lengths]
    kept = cut(parts, num_tokens)
    assert sum(map(len, kept)) == min(sum(lengths), num_tokens)
    for part, whole in zip(kept, parts, strict=True):
        assert part == whole[: len(part)]
        assert len(part) == len(whole) or len(part) >= max(map(len, kept)) - 1, "another one should have been cut"


def test_a_batch_stacks_its_samples() -> None:
    source = ShuffledEpochs(rows(("a",), ("b c",)), 3, 4)
    batch = build_sentence_batch([source[0], source[1]], [10, 11])
    assert batch.tokens_BS.shape == batch.types_BS.shape == (2, 8) and batch.sample_ids_B.tolist() == [10, 11]
    assert batch.padding_BS is not None and torch.equal(batch.padding_BS, batch.tokens_BS == 0)
    assert batch.labels_B is not None and sorted(batch.labels_B.tolist()) == [0, 1]
    assert batch.weights_B is not None and batch.weights_B.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("seq_length", [3, 4])
def test_a_very_short_sequence_length(seq_length: int) -> None:
    assert spelled(rows(("a b", "c d"), seq_length=seq_length + 2)[0]).startswith("[CLS] a")
