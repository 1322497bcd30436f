"""Samples of BERT's pretraining: their sentences, masked tokens and padding, and data without any sample."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from megatron.ltd.data.bert_batch import build_bert_batch
from megatron.ltd.data.bert_datasets import build_bert_datasets, check_sentences
from megatron.ltd.data.config import VALID, BertDataConfig
from megatron.ltd.data.encode import EncodedDocuments
from megatron.ltd.data.microbatches import SampleSource
from megatron.ltd.data.sources import check_sources
from megatron.ltd.data.writer import DatasetWriter
from megatron.ltd.tokenizers.wordpiece import SPECIAL_PIECES, WordPieceTokenizer
from tests.support_errors import refused

WORDS = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
VOCABULARY = [*SPECIAL_PIECES, *WORDS, *(f"##{letter}" for letter in "uvwxyz")]
TOKENIZER = WordPieceTokenizer("BertWordPieceCase", "".join(f"{piece}\n" for piece in VOCABULARY).encode(), "v.txt")
PAD, CLS, SEP, MASK = TOKENIZER.pad, TOKENIZER.cls, TOKENIZER.sep, TOKENIZER.mask
S = 48
pytestmark = pytest.mark.usefixtures("mesh")  # Megatron-Core's dataset asks for the rank


def write(folder: Path, documents: list[list[list[int]]], name: str = "d") -> str:
    """Write documents, which are lists of sentences of token ids; returns the prefix."""
    prefix = str(folder / name)
    writer = DatasetWriter(prefix, TOKENIZER.vocab_size)
    ids = [token for document in documents for sentence in document for token in sentence]
    lengths = tuple(tuple(map(len, document)) for document in documents)
    writer.add(EncodedDocuments(numpy.array(ids, numpy.int32), lengths))
    writer.finish(TOKENIZER, "text", append_eod=False)
    writer.publish()
    return prefix


def sentences(seed: int, number: int) -> list[list[int]]:
    """Sentences of 3 to 9 words as token ids; some words have two word pieces."""
    draw = numpy.random.default_rng(seed)
    words = [draw.choice(WORDS, draw.integers(3, 10)) for _ in range(number)]
    return [TOKENIZER.encode(" ".join(word + "u" * (draw.random() < 0.3) for word in line)) for line in words]


def build(
    prefix: str, samples: int = 200, *, order: bool = True, seed: int = 1, valid: int = 0, **flags: object
) -> SampleSource:
    config = BertDataConfig(**{"data_path": (prefix,), "split": "1", **flags})
    train, evaluated = build_bert_datasets(
        config, sentence_order=order, seq_length=S, seed=seed, train_samples=samples,
        eval_samples={VALID: valid} if valid else {}, tokenizer=TOKENIZER, sources=check_sources(config, TOKENIZER),
    )  # fmt: skip
    assert train is not None and len(evaluated) == bool(valid)
    return train


def restored(sample: dict) -> list[int]:
    """The tokens of a sample without padding, as they were before masking."""
    tokens = numpy.where(sample["loss_mask"] == 1.0, sample["labels"], sample["tokens"])
    return tokens[~sample["padding"]].tolist()


@pytest.fixture(scope="module")
def documents() -> list[list[list[int]]]:
    return [sentences(seed, 2 + seed % 9) for seed in range(40)]


@pytest.fixture(scope="module")
def prefix(documents: list[list[list[int]]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("bert"), documents)


def test_a_sample_is_two_spans_of_sentences_of_one_document(prefix: str, documents: list[list[list[int]]]) -> None:
    dataset = build(prefix)
    texts = [" ".join(str(token) for sentence in document for token in sentence) + " " for document in documents]
    swapped = []
    for index in range(200):
        sample = dataset[index]
        tokens = restored(sample)
        assert sample["padding"].tolist() == [False] * len(tokens) + [True] * (S - len(tokens))
        assert tokens[0] == CLS and tokens[-1] == SEP and tokens.count(SEP) == 2
        middle = tokens.index(SEP)
        parts = [tokens[1:middle], tokens[middle + 1 : -1]]
        types = [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
        assert sample["types"].tolist() == types + [0] * (S - len(tokens))
        swapped.append(sample["is_swapped"])
        first, second = reversed(parts) if sample["is_swapped"] else parts
        spelled = ["".join(f"{token} " for token in part) for part in (first, second)]
        assert any(0 <= text.find(spelled[0]) < text.rfind(spelled[1]) for text in texts)
    assert 60 < sum(swapped) < 140


def test_15_percent_are_masked_as_whole_words_and_never_a_special_token(prefix: str) -> None:
    dataset, counts = build(prefix, 400), {"mask": 0, "kept": 0, "other": 0, "real": 0}
    for index in range(400):
        sample = dataset[index]
        hidden = sample["loss_mask"] == 1.0
        whole = numpy.array(restored(sample) + [PAD] * int(sample["padding"].sum()))
        assert not hidden[numpy.isin(whole, (PAD, CLS, SEP))].any()
        assert (sample["labels"][~hidden] == 0).all() and (sample["tokens"][~hidden] == whole[~hidden]).all()
        pieces = [TOKENIZER.inv_vocab[int(token)] for token in whole]
        for place in range(1, S):
            if pieces[place].startswith("##") and pieces[place - 1] in WORDS:
                assert hidden[place] == hidden[place - 1], "a word is hidden whole"
        counts["real"] += int((~sample["padding"]).sum())
        counts["mask"] += int((sample["tokens"][hidden] == MASK).sum())
        counts["kept"] += int((sample["tokens"][hidden] == sample["labels"][hidden]).sum())
        others = sample["tokens"][hidden & (sample["tokens"] != MASK) & (sample["tokens"] != whole)]
        assert not numpy.isin(others, range(5)).any(), "what replaces a token is text"
        counts["other"] += len(others)
    hidden_tokens = counts["mask"] + counts["kept"] + counts["other"]
    assert hidden_tokens / counts["real"] == pytest.approx(0.15, abs=0.02)
    assert counts["mask"] / hidden_tokens == pytest.approx(0.8, abs=0.05)
    assert counts["kept"] / hidden_tokens == pytest.approx(0.1, abs=0.04)


def test_without_sentence_order_a_sample_is_one_span(prefix: str) -> None:
    dataset = build(prefix, order=False)
    for index in range(50):
        sample = dataset[index]
        tokens = restored(sample)
        assert tokens[0] == CLS and tokens[-1] == SEP and tokens.count(SEP) == 1
        assert not sample["types"].any() and not sample["is_swapped"]


def test_samples_depend_on_seed_mask_prob_and_short_seq_prob_only(prefix: str) -> None:
    def tokens(**flags: object) -> list[list[int]]:
        dataset = build(prefix, **flags)
        return [dataset[index]["tokens"].tolist() for index in range(50)]

    first = tokens()
    assert tokens() == first == tokens(mmap_bin_files=False)
    assert tokens(seed=2) != first != tokens(mask_prob=0.4)
    short, full = (numpy.mean([numpy.count_nonzero(row) for row in tokens(short_seq_prob=prob)]) for prob in (1.0, 0.0))
    assert short < 0.9 * full


def test_indices_of_replaced_data_are_not_used(tmp_path: Path) -> None:
    prefix = write(tmp_path, [sentences(1, 4)] * 20)
    build(prefix, 30)
    write(tmp_path, [sentences(2, 3)])
    allowed = {token for sentence in sentences(2, 3) for token in sentence} | {CLS, SEP}
    dataset = build(prefix, 30)
    assert {token for index in range(30) for token in restored(dataset[index])} <= allowed


def test_a_batch_stacks_its_samples(prefix: str) -> None:
    dataset = build(prefix)
    samples = [dataset[3], dataset[4]]
    batch = build_bert_batch(samples, [3, 4], whole_tokens=True)
    for name, dtype in (("tokens", torch.int64), ("types", torch.int64), ("labels", torch.int64),
                        ("loss_mask", torch.float32), ("padding", torch.bool)):  # fmt: skip
        found = getattr(batch, f"{name}_BS")
        assert found.dtype == dtype and found.tolist() == [sample[name].tolist() for sample in samples]
    assert batch.is_swapped_B.tolist() == [int(sample["is_swapped"]) for sample in samples]
    assert batch.sample_ids_B.tolist() == [3, 4] and batch.whole_tokens_BS is batch.tokens_BS
    assert build_bert_batch(samples, [3, 4]).whole_tokens_BS is None


def test_documents_of_one_sentence_are_refused(tmp_path: Path) -> None:
    prefix = write(tmp_path, [[[7, 8, 9]]] * 5)
    config = BertDataConfig(data_path=(prefix,))
    with refused(5, "--split-sentences"):
        check_sentences(config, check_sources(config, TOKENIZER))
    assert build(prefix, 10, order=False)[0]["tokens"].tolist()[:5].count(SEP) == 1


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[[7] * 4, [8] * 4]] + [[[7] * 9]] * 9, (5,)),
        ([[[7] * 4, [8] * 4]] * 5 + [[[7] * 600, [8] * 4]] * 5, (512,)),
    ],
)
def test_a_split_without_a_sample_is_refused(
    documents: list[list[list[int]]], message: tuple[object, ...], tmp_path: Path
) -> None:
    """Megatron-Core would search for a sample forever."""
    with refused(*message):
        build(write(tmp_path, documents), 4, valid=4, split="5,5")


def test_a_split_without_documents_is_refused(prefix: str) -> None:
    with refused("--split 1", 40):
        build(prefix, 4, valid=4)
