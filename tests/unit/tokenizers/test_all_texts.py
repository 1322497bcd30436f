"""The texts of the shared data have the ids of the library that each tokenizer stands for.

    TEXTS=all python -m pytest tests/unit/tokenizers/test_all_texts.py     25 MB, some minutes

Otherwise the beginning of each file of text, and one of a hundred records.
"""

from __future__ import annotations

import bz2
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, pre_tokenizers

from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.unit.tokenizers.test_hugging_face import HOSTILE
from tests.unit.tokenizers.test_sentencepiece import train
from tests.unit.tokenizers.test_tiktoken_ranks import ranks as rank_file
from tests.unit.tokenizers.test_tiktoken_ranks import reference
from tests.unit.tokenizers.test_wordpiece import published

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    """Files of text, whole, and files of records, a text for each line; or a sample of both."""
    length, step = (None, 1) if os.environ.get("TEXTS") == "all" else (100_000, 100)
    found = [path.read_text(encoding="utf-8")[:length] for path in sorted(shared_data.rglob("*.txt"))]
    lines = [path.read_text(encoding="utf-8") for path in sorted(shared_data.rglob("*.jsonl"))]
    lines += [bz2.decompress(path.read_bytes()).decode() for path in sorted(shared_data.rglob("*.bz2"))]
    for path in sorted(shared_data.rglob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            lines += [archive.read(name).decode("latin-1") for name in archive.namelist()]
    found += [line for file in lines for line in file.splitlines()[::step]]
    assert sum(map(len, found)) > (20_000_000 if length is None else 700_000)
    return found


def gpt2(shared_data: Path, folder: Path) -> tuple[Encode, Encode]:
    files = [str(shared_data / "gpt2-vocab" / name) for name in ("encoder.json", "vocab.bpe")]
    theirs = ByteLevelBPETokenizer(*files)
    ours = build_tokenizer(TokenizerFiles("GPT2BPETokenizer", vocab_file=files[0], merge_file=files[1]))
    return ours.encode, lambda text: theirs.encode(text).ids


def ranks(shared_data: Path, folder: Path) -> tuple[Encode, Encode]:
    """GPT-2's pieces as a file of ranks, cut by Llama 3's pattern."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {symbol: bytes([byte]) for byte, symbol in bytes_to_unicode().items()}
    vocabulary = json.loads((shared_data / "gpt2-vocab" / "encoder.json").read_text(encoding="utf-8"))
    pieces = [b"".join(byte_of[symbol] for symbol in piece) for piece in vocabulary if piece != "<|endoftext|>"]
    path = folder / "tokenizer.model"
    path.write_bytes(rank_file(pieces))
    ours = build_tokenizer(TokenizerFiles("TikTokenizer", tokenizer_model=str(path)))
    return ours.encode, reference(path).encode_ordinary


def hugging_face(shared_data: Path, folder: Path) -> tuple[Encode, Encode]:
    """GPT-2 as a ``tokenizer.json`` that puts a space before each text."""
    from transformers import PreTrainedTokenizerFast

    files = [str(shared_data / "gpt2-vocab" / name) for name in ("encoder.json", "vocab.bpe")]
    made = Tokenizer.from_str(ByteLevelBPETokenizer(*files).to_str())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ours = build_tokenizer(
        TokenizerFiles("HuggingFaceTokenizer", tokenizer_model=str(folder), eod_token="<|endoftext|>")
    )
    return ours.encode, lambda text: theirs.encode(text, add_special_tokens=False)


def sentence_pieces(shared_data: Path, folder: Path) -> tuple[Encode, Encode]:
    """A model trained on a book, with pieces for unknown bytes."""
    book = (shared_data / "gutenberg" / "1342.txt").read_text(encoding="utf-8")
    path = train(folder, book, vocab_size=2000, byte_fallback=True)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = build_tokenizer(TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(path)))
    return ours.encode, theirs.encode


def word_pieces(shared_data: Path, folder: Path) -> tuple[Encode, Encode]:
    """A vocabulary of a book."""
    book = str(shared_data / "gutenberg" / "1342.txt")
    train_tokenizer(
        TrainTokenizerConfig(input=(book,), vocab_size=2000, model_type="wordpiece", output_prefix=str(folder / "book"))
    )
    ours = build_tokenizer(TokenizerFiles("BertWordPieceLowerCase", vocab_file=str(folder / "book-vocab.txt")))
    return ours.encode, published(ours, lower=True)


@pytest.fixture(scope="module", params=[gpt2, ranks, hugging_face, sentence_pieces, word_pieces])
def pair(
    request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Encode, Encode]:
    """Ours and theirs."""
    return request.param(shared_data, tmp_path_factory.mktemp("pair"))


def test_hostile_text(pair: tuple[Encode, Encode], request: pytest.FixtureRequest) -> None:
    """A lone surrogate is what no library takes: it has the ids of the replacement character."""
    ours, theirs = pair
    texts = HOSTILE
    if (
        request.node.callspec.params["pair"] is word_pieces
    ):  # BERT's own code drops what Unicode has not assigned; transformers' library has [UNK]
        texts = tuple(text.replace(chr(0x10FFFF), "") for text in HOSTILE)
    assert [text for text in texts if ours(text) != theirs(text)] == []
    assert ours("a\ud83db \udcff\ud83d\ude00") == theirs("a\ufffdb \ufffd\U0001f600")


def test_ids(pair: tuple[Encode, Encode], texts: list[str]) -> None:
    ours, theirs = pair
    different = [text[:80] for text in texts if ours(text) != theirs(text)]
    assert not different
