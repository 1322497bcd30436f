"""SentencePiece models, trained here by the library itself with the options that are in common use."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import sentencepiece

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused


def train(folder: Path, text: str, **options: object) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=model,
        model_type="bpe",
        minloglevel=2,
        bos_id=-1,
        **{"vocab_size": 90, "hard_vocab_limit": False, **options},
    )
    path = folder / "m.model"
    path.write_bytes(model.getvalue())
    return path


def tokenizer_of(path: Path) -> Tokenizer:
    return build_tokenizer(TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(path)))


def test_ids_are_the_librarys(tmp_path: Path, sample_text: str) -> None:
    path = train(tmp_path, sample_text)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = tokenizer_of(path)
    assert ours.encode(sample_text) == theirs.encode(sample_text)
    assert ours.vocab_size == theirs.get_piece_size()
    assert ours.eod == theirs.piece_to_id("</s>") == theirs.eos_id()


def test_end_of_document_in_a_text_is_ordinary_text(tmp_path: Path, sample_text: str) -> None:
    ours = tokenizer_of(train(tmp_path, sample_text))
    assert "</s>" in sample_text and ours.eod not in ours.encode(sample_text)


EXACT = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (EXACT, True), ({**EXACT, "add_dummy_prefix": False}, True), ({**EXACT, "byte_fallback": False}, False),
        ({**EXACT, "normalization_rule_name": "nmt_nfkc"}, False), ({**EXACT, "remove_extra_whitespaces": True}, False),
    ],
)  # fmt: skip
def test_a_model_that_changes_text_says_so(
    options: dict[str, object], kept: bool, tmp_path: Path, sample_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train(tmp_path, sample_text, **{"vocab_size": 400 if options["byte_fallback"] else 90, **options})
    assert (tokenizer_of(path).loss() is None) == kept
    (tmp_path / "t.txt").write_text("some text")
    config = PreprocessConfig(input=(str(tmp_path / "t.txt"),), output_prefix=str(tmp_path / "d"))
    preprocess(config, TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(path)))
    said = capsys.readouterr().out
    assert ("" if kept else f"warning: --tokenizer-model {path}: ") in said and said.count("\n") == (not kept)


def test_end_of_document_piece_serves_without_an_end_of_sequence(tmp_path: Path, sample_text: str) -> None:
    path = train(tmp_path, sample_text, eos_id=-1, control_symbols=["<eod>"])
    assert tokenizer_of(path).eod == sentencepiece.SentencePieceProcessor(model_file=str(path)).piece_to_id("<eod>")


def test_a_model_without_end_of_document_is_refused(tmp_path: Path, sample_text: str) -> None:
    path = train(tmp_path, sample_text, eos_id=-1)
    with refused("m.model"):
        tokenizer_of(path)


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_the_space_symbol_is_kept(tmp_path: Path, sample_text: str, add_dummy_prefix: bool) -> None:
    """Decoding restores the text, also if the model puts a space before it, which it does only once."""
    ours = tokenizer_of(train(tmp_path, sample_text, vocab_size=400, add_dummy_prefix=add_dummy_prefix, **EXACT))
    copy = pickle.loads(pickle.dumps(ours))
    for text in (
        "a\u2581b",
        "\u2581",
        "\u2581\u2581a ",
        "a \u2581 b\u2581",
        " a\u2581\n\u2581b",
        "\u2581a \u2581\u2581 b",
    ):
        assert ours.decode(ours.encode(text)) == text == ours.decode(copy.encode(text))
