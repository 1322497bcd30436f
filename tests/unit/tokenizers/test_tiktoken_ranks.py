"""Tokenizers from a tiktoken file of ranks, and the encoding that all tokenizers on tiktoken share."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from megatron.ltd.tokenizers import tiktoken_text
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from megatron.ltd.tokenizers.tiktoken_ranks import llama3_special_tokens
from tests.support_errors import refused
from tests.unit.tokenizers.test_hugging_face import HOSTILE

LLAMA_3 = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
PIECES = [bytes([byte]) for byte in range(256)] + [b"  ", b"th", b"the", b" the", b"\n\n", "é".encode(), b"18"]


def ranks(pieces: list[bytes] = PIECES) -> bytes:
    return b"".join(base64.b64encode(piece) + b" %d\n" % place for place, piece in enumerate(pieces))


def ours(folder: Path, content: bytes | None = None, **flags: object) -> Tokenizer:
    path = folder / "tokenizer.model"
    path.write_bytes(ranks() if content is None else content)
    return build_tokenizer(TokenizerFiles("TikTokenizer", tokenizer_model=str(path), **flags))  # type: ignore[arg-type]


def reference(path: Path) -> tiktoken.Encoding:
    """tiktoken's own loader with Llama 3's published pattern."""
    return tiktoken.Encoding("theirs", pat_str=LLAMA_3, mergeable_ranks=load_tiktoken_bpe(str(path)), special_tokens={})


def test_ids_are_those_of_the_reference(tmp_path: Path, sample_text: str) -> None:
    found, theirs = ours(tmp_path), reference(tmp_path / "tokenizer.model")
    for text in (sample_text, "the  the\n\n1868 the", "a\ud83db", *HOSTILE):
        assert found.encode(text) == theirs.encode_ordinary(text)
        assert found.decode(found.encode(text)) == theirs.decode(theirs.encode_ordinary(text))


def test_llama_3s_special_tokens() -> None:
    """They are the 256 of the published tokenizer, whose ids follow those of 128,000 pieces."""
    tokens = llama3_special_tokens()
    assert len(set(tokens)) == len(tokens) == 256
    published = {
        "<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|reserved_special_token_0|>": 128002,
        "<|reserved_special_token_3|>": 128005, "<|start_header_id|>": 128006, "<|end_header_id|>": 128007,
        "<|reserved_special_token_4|>": 128008, "<|eot_id|>": 128009, "<|reserved_special_token_5|>": 128010,
        "<|reserved_special_token_250|>": 128255,
    }  # fmt: skip
    assert {token: 128000 + tokens.index(token) for token in published} == published


def test_special_tokens_follow_the_pieces(tmp_path: Path) -> None:
    found = ours(tmp_path)
    assert found.vocab_size == len(PIECES) + 256 and found.eod == len(PIECES) + 1
    assert found.decode([found.eod]) == "<|end_of_text|>" and found.eod not in found.encode("<|end_of_text|>")
    other = ours(tmp_path, tiktoken_special_tokens=("<s>", "</s>"))
    assert (other.vocab_size, other.eod) == (len(PIECES) + 2, len(PIECES) + 1)
    chosen = ours(tmp_path, eod_token="<|eot_id|>")
    assert chosen.eod == len(PIECES) + 9
    assert len({found.fingerprint, other.fingerprint, chosen.fingerprint}) == 3


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"eod_token": "<nix>"}, ("--eod-token <nix>",)),
        ({"tiktoken_special_tokens": ("<s>", "<s>")}, ("--tiktoken-special-tokens", "<s>")),
        ({"tiktoken_special_tokens": ("<s>", "<x>")}, ("--tokenizer-model", "--eod-token")),
    ],
)
def test_bad_special_tokens_are_refused(tmp_path: Path, flags: dict[str, object], names: tuple[str, ...]) -> None:
    with refused(*names):
        ours(tmp_path, **flags)


@pytest.mark.parametrize(
    "content",
    [
        b"\n\x0b\x80 a model",
        b"{}",
        ranks()[:-3] + b"x",
        ranks() + b"AA== 263\n",
        ranks().replace(b" 5\n", b" 6\n"),
        ranks(PIECES[1:]),
        ranks() + b"!!!! 263\n",
    ],
)
def test_files_that_are_not_ranks_are_refused(tmp_path: Path, content: bytes) -> None:
    with refused("--tokenizer-model", tmp_path / "tokenizer.model"):
        ours(tmp_path, content)


def test_errors_of_other_tokenizer_types_name_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content, kind in ((ranks(), "TikTokenizer"), (b'{"version": "1.0"}', "HuggingFaceTokenizer")):
        path.write_bytes(content)
        with refused(f"--tokenizer-model {path}", f"--tokenizer-type {kind}"):
            build_tokenizer(TokenizerFiles("SentencePieceTokenizer", tokenizer_model=str(path)))


@pytest.mark.parametrize("space", [" ", "\t", " \n"])
@pytest.mark.parametrize("after", ["x", ""])
def test_long_runs_of_spaces(tmp_path: Path, space: str, after: str) -> None:
    """Over a million spaces in a row would exhaust the stack of tiktoken's regex engine."""
    found, text = ours(tmp_path), f"the{space * (1_200_000 // len(space))}{after}"
    assert found.decode(found.encode(text)) == text


def test_other_long_texts_are_encoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_text: str) -> None:
    monkeypatch.setattr(tiktoken_text, "LONGEST_SPACE", 8)
    found = ours(tmp_path)
    assert isinstance(found, tiktoken_text.TiktokenTokenizer)
    text = sample_text * 20 + " " * 8 + "x" * 40
    assert found.encode(text) == found.encoding.encode_ordinary(text)
    assert found.decode(found.encode("the" + " " * 20 + "the")) == "the" + " " * 20 + "the"


def test_flags_of_other_types_are_refused() -> None:
    with refused("--eod-token x", "--tokenizer-type ByteTokenizer"):
        TokenizerFiles("ByteTokenizer", eod_token="x")
    with refused("--tiktoken-special-tokens x", "--tokenizer-type HuggingFaceTokenizer"):
        TokenizerFiles("HuggingFaceTokenizer", tiktoken_special_tokens=("x",))
