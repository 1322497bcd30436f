"""WordPiece: the ids of Hugging Face's BERT tokenizer, reproducible training of a vocabulary, and refused files."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.wordpiece import SPECIAL_PIECES, WordPieceTokenizer
from tests.support_errors import refused

TEXTS = [
    "The naïve reader, unmasked: 12 readings!",
    "[MASK] it, [SEP]",
    "UN-\u0000likely\tZürich  ",
    "日本 §",
    "",
    "x" * 300,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``lower-vocab.txt`` and ``cased-vocab.txt``, trained on this project's source."""
    folder = tmp_path_factory.mktemp("wordpiece")
    sources = sorted(Path(__file__).parents[3].joinpath("megatron/ltd/data").glob("*.py"))
    (folder / "t.txt").write_text("".join(file.read_text(encoding="utf-8") for file in sources) + "".join(TEXTS[:-1]))
    for name, cased in (("lower", False), ("cased", True)):
        train_tokenizer(config(folder, name, cased=cased))
    return folder


def config(folder: Path, name: str, **values: object) -> TrainTokenizerConfig:
    fields = {"input": (str(folder / "t.txt"),), "vocab_size": 500, "model_type": "wordpiece"}
    return TrainTokenizerConfig(**{**fields, "output_prefix": str(folder / name), **values})


def open_tokenizer(folder: Path, name: str) -> WordPieceTokenizer:
    kind = {"lower": "BertWordPieceLowerCase", "cased": "BertWordPieceCase"}[name]
    tokenizer = build_tokenizer(TokenizerFiles(kind, vocab_file=str(folder / f"{name}-vocab.txt")))
    assert isinstance(tokenizer, WordPieceTokenizer)
    return tokenizer


def published(ours: WordPieceTokenizer, *, lower: bool) -> Callable[[str], list[int]]:
    """BERT's cutting of words in Python, as it was published, with the vocabulary of ``ours``."""
    from transformers.models.bert.tokenization_bert_legacy import BasicTokenizer, WordpieceTokenizer

    ids = {piece: token for token, piece in ours.inv_vocab.items()}
    basic = BasicTokenizer(do_lower_case=lower)
    pieces = WordpieceTokenizer(ids, unk_token="[UNK]", max_input_chars_per_word=100)
    return lambda text: [ids[piece] for word in basic.tokenize(text) for piece in pieces.tokenize(word)]


@pytest.mark.parametrize("name", ["lower", "cased"])
def test_ids_are_those_of_hugging_faces_bert_tokenizer(folder: Path, name: str) -> None:
    ours = open_tokenizer(folder, name)
    theirs = published(ours, lower=name == "lower")
    for text in TEXTS:
        assert ours.encode(text) == theirs(text), text
    assert not {ours.mask, ours.sep} & set(ours.encode(TEXTS[1]))


def test_special_ids_case_and_words(folder: Path) -> None:
    lower, cased = open_tokenizer(folder, "lower"), open_tokenizer(folder, "cased")
    assert (lower.pad, *lower.special_ids) == (0, 1, 2, 3, 4)
    assert lower.eod == lower.sep == 3
    assert lower.decode(lower.encode("The Reader says")) == "the reader says"
    assert cased.encode("The") != cased.encode("the") and lower.encode("The") == lower.encode("thé")
    assert lower.decode([2, *lower.encode("a b"), 3]) == "[CLS] a b [SEP]"
    assert lower.fingerprint != cased.fingerprint
    copy = pickle.loads(pickle.dumps(lower))
    assert copy.encode(TEXTS[0]) == lower.encode(TEXTS[0]) and copy.unique_identifiers == lower.unique_identifiers


def test_same_text_same_vocabulary(folder: Path) -> None:
    """Training again, in this process or with another hash seed in a new one, gives the same vocabulary."""
    import subprocess

    train_tokenizer(config(folder, "again"))
    code = (
        "from megatron.ltd.data.train_tokenizer import *;"
        f"train_tokenizer(TrainTokenizerConfig(input=({str(folder / 't.txt')!r},), vocab_size=500,"
        f"model_type='wordpiece', output_prefix={str(folder / 'other')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    first = (folder / "lower-vocab.txt").read_text()
    assert (folder / "again-vocab.txt").read_text() == first == (folder / "other-vocab.txt").read_text()
    pieces = first.splitlines()
    assert tuple(pieces[:5]) == SPECIAL_PIECES and len(set(pieces)) == len(pieces) == 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\na\n", ("v.txt", "[PAD]", 2)),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", ("v.txt", "[MASK]")),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", ("v.txt:7", "a")),
        (b"[PAD]\n\n[UNK]\n", ("v.txt:2",)),
        (b"[PAD]\n\xff\n", ("v.txt", "UTF-8", 6)),
        (None, ("--vocab-file", "v.txt")),
    ],
)
def test_bad_vocabularies_are_refused(
    content: bytes | None, message: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("v.txt").write_bytes(content)
    with refused(*message) as error:
        build_tokenizer(TokenizerFiles("BertWordPieceCase", vocab_file="v.txt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cased": True, "model_type": "bpe"}, ("--cased", "--model-type")),
        ({"vocab_size": 90_000}, ("--vocab-size 90000", "none-vocab.txt")),
        ({"output_prefix": "lower"}, ("--output-prefix", "lower-vocab.txt", "--overwrite")),
    ],
)
def test_bad_training_flags_are_refused(
    folder: Path, values: dict, message: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    with refused(*message):
        train_tokenizer(config(folder, "none", **values))
    assert sorted(folder.iterdir()) == before


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "megatron.ltd.tokenizers.wordpiece")
    with refused("BertWordPieceCase", "megatron-ltd[bert]"):
        build_tokenizer(TokenizerFiles("BertWordPieceCase", vocab_file="v.txt"))
