"""Tokenizers from flags: the right class, its fingerprint, and a one-line error for every unusable file."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerConfig, TokenizerFiles
from tests.support_errors import refused

BYTES = TokenizerFiles(tokenizer_type="ByteTokenizer")


def test_byte_ids_are_utf8_and_the_end_of_document_is_not_a_byte(sample_text: str) -> None:
    tokenizer = build_tokenizer(BYTES)
    assert tokenizer.encode("é\0") == [0xC3, 0xA9, 0]
    assert (tokenizer.vocab_size, tokenizer.eod) == (257, 256)
    assert tokenizer.decode([*tokenizer.encode(sample_text), tokenizer.eod]) == sample_text
    assert tokenizer.decode([0xC3, 0x41]) == "\ufffdA"


def test_a_lone_surrogate_is_the_replacement_character() -> None:
    assert build_tokenizer(BYTES).encode("a\udcff") == list("a\ufffd".encode())


def test_numbers_as_ids() -> None:
    """Megatron-LM's rule: the last id ends a document. Other words than numbers, and larger ones, are refused."""
    null = build_tokenizer(TokenizerConfig("NullTokenizer", vocab_size=100))
    assert (null.vocab_size, null.eod, null.encode(" 7 0 98\n")) == (100, 99, [7, 0, 98])
    assert null.decode([7, 99, 8]) == "7 8"
    other = build_tokenizer(TokenizerConfig("NullTokenizer", vocab_size=101))
    assert null.fingerprint != other.fingerprint
    for text in ("a", "100", "-1", "1.0", "9" * 5000, "²", "٣"):
        with refused("--tokenizer-type NullTokenizer", "0 to 99", repr(text[:20])):
            null.encode(text)
    with refused("--tokenizer-type NullTokenizer", "--vocab-size", "--mock-data"):
        build_tokenizer(TokenizerFiles("NullTokenizer"))


def test_tokenizers_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(build_tokenizer(BYTES)))
    assert copy.unique_identifiers == build_tokenizer(BYTES).unique_identifiers


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, ("--tokenizer-type",)),
        (
            {"tokenizer_type": "SentencePieceTokenizer"},
            ("--tokenizer-model", "--tokenizer-type SentencePieceTokenizer"),
        ),
        ({"tokenizer_type": "GPT2BPETokenizer"}, ("--vocab-file",)),
        ({"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "good.json"}, ("--merge-file",)),
        ({"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "none"}, ("--tokenizer-model",)),
        ({"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "empty"}, ("--tokenizer-model",)),
        ({"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "good.json"}, ("SentencePiece",)),
        ({"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": "."}, ("--tokenizer-model",)),
    ],
)
def test_bad_files_are_refused(
    files: dict, message: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text('{"a": 0}')
    Path("empty").touch()
    with refused(*message) as error:
        build_tokenizer(TokenizerFiles(**files))
    assert "\n" not in str(error.value)
