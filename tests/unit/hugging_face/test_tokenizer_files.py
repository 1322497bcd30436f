"""Hugging Face's tokenizers, built from the files that we write, give the same ids as ours for real text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece

from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from megatron.ltd.hugging_face.model import described_tokenizer
from megatron.ltd.hugging_face.tokenizer_files import check_tokenizer, write_tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused
from tests.unit.tokenizers.test_hugging_face import save
from tests.unit.tokenizers.test_tiktoken_ranks import ranks

SAMPLE = """def fade(x, *, by=0.5):
\t'''Spaces   in a row, a tab, and “quotes”: naïve café, 東京, 🙂.'''
    return x * by  # trailing   \n\n\nIt's 1868; they'll say it isn't at all.\r\n"""


@pytest.fixture(scope="module")
def text(repository: Path) -> Iterator[str]:
    """About 90 KB of source code and prose."""
    files = sorted((repository / "megatron" / "ltd").rglob("*.py"))[:12]
    yield SAMPLE + "".join(path.read_text() for path in [repository / "README.md", *files])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: str) -> dict[str, TokenizerFiles]:
    """SentencePiece models from our tool, one like Llama's that puts a space before a text, and one that normalizes."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "text.txt").write_text(text)
    files = {}
    for kind in ("bpe", "unigram"):
        config = TrainTokenizerConfig(
            input=(str(folder / "text.txt"),), vocab_size=1000, output_prefix=str(folder / kind), model_type=kind
        )
        files[kind] = TokenizerFiles("SentencePieceTokenizer", tokenizer_model=train_tokenizer(config).path)
    files["space before"] = _train(folder / "space.model", text, "identity", model_type="bpe", byte_fallback=True)
    files["normalising"] = _train(folder / "nfkc.model", text, "nmt_nfkc", model_type="unigram")
    return files


def _train(path: Path, text: str, normalization: str, **settings: object) -> TokenizerFiles:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()), model_writer=model, vocab_size=700, minloglevel=2,
        normalization_rule_name=normalization, remove_extra_whitespaces=False, **settings,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(path))


def assert_same_ids(files: TokenizerFiles, folder: Path, model_type: str, text: str, *, same_file: bool = True) -> None:
    from transformers import AutoTokenizer

    ours = build_tokenizer(files)
    check_tokenizer(ours)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    write_tokenizer(folder, files, ours, 1024)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eod
    assert (len(theirs), theirs.model_max_length) == (ours.vocab_size, 1024)
    ids = ours.encode(text)
    assert theirs(text, verbose=False)["input_ids"] == ids and theirs.decode(ids) == text
    again = build_tokenizer(TokenizerFiles(**described_tokenizer(folder)))
    assert again.encode(text) == ids and again.eod == ours.eod
    assert not same_file or again.fingerprint == ours.fingerprint


@pytest.mark.parametrize(
    ("kind", "model_type"), [("bpe", "gpt2"), ("bpe", "llama"), ("unigram", "llama"), ("space before", "llama")]
)
def test_sentencepiece(
    trained: dict[str, TokenizerFiles], tmp_path: Path, text: str, kind: str, model_type: str
) -> None:
    assert_same_ids(trained[kind], tmp_path / "model", model_type, SAMPLE if kind == "unigram" else text)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_gpt2s_own_vocabulary(shared_data: Path, tmp_path: Path, text: str, model_type: str) -> None:
    folder = shared_data / "gpt2-vocab"
    files = TokenizerFiles("GPT2BPETokenizer", str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    assert_same_ids(files, tmp_path / "model", model_type, text)


def test_a_small_byte_level_vocabulary(small_bpe: TokenizerFiles, tmp_path: Path, text: str) -> None:
    assert_same_ids(small_bpe, tmp_path / "model", "gpt2", text)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_hugging_face_tokenizer(tmp_path: Path, text: str, kind: str) -> None:
    """The export leaves out the file's post-processor, which would put a token before every text."""
    folder = save(tmp_path / "t", text[:20_000], kind, eos_token="<|endoftext|>")
    files = TokenizerFiles("HuggingFaceTokenizer", tokenizer_model=str(folder))
    assert_same_ids(files, tmp_path / "model", "llama", text, same_file=False)


def test_a_tiktoken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "ranks").write_bytes(ranks())
    files = TokenizerFiles("TikTokenizer", tokenizer_model=str(tmp_path / "ranks"))
    assert_same_ids(files, tmp_path / "model", "llama", text, same_file=False)


def test_a_tokenizer_that_normalizes_text_is_refused(trained: dict[str, TokenizerFiles], tmp_path: Path) -> None:
    files = trained["normalising"]
    with refused(f"--tokenizer-model {files.tokenizer_model}", "--no-tokenizer"):
        write_tokenizer(tmp_path, files, build_tokenizer(files), 16)


def test_the_byte_tokenizer_has_no_counterpart() -> None:
    with refused("ByteTokenizer", "--no-tokenizer"):
        check_tokenizer(build_tokenizer(TokenizerFiles("ByteTokenizer")))
