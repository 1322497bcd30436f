"""Tokenizers from a ``tokenizer.json``: the ids are those of ``transformers`` on the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from megatron.ltd.tokenizers.base import Tokenizer as Ours
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused

END = "<|endoftext|>"
HOSTILE = (
    "",
    " ",
    "\x00a\x00",
    "e\u0301 \u00e9 \ufb01 ½",
    "👩‍👩‍👧‍👦🏳️‍🌈🙂",
    "\u200b\u202eabc\u202c\ufeff",
    "a" * 3000 + " " * 3000 + "\n" * 300,
    "東京は русский العربية",
    "\r\n\t\v\f\x85\u2028",
    "��" + chr(0x10FFFF),
)


def save(folder: Path, text: str, kind: str = "byte level", **settings: Any) -> Path:
    """Train a tokenizer on ``text`` and save it in the files that come with a model; returns the folder."""
    if kind == "byte level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # as Llama 2
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = []
    special = ["<unk>", "<s>", END]
    pieces = [AddedToken(token, special=True, normalized=False) for token in special]
    if kind != "byte level":
        pieces += [AddedToken(f"<0x{byte:02X}>", special=False, normalized=False) for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=pieces, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(text.splitlines(keepends=True), trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def ours(path: Path, **flags: Any) -> Ours:
    return build_tokenizer(TokenizerFiles("HuggingFaceTokenizer", tokenizer_model=str(path), **flags))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sample_text: str) -> Ours:
    """A tokenizer of bytes whose files name the end of a text. Tests must not change it."""
    return ours(save(tmp_path_factory.mktemp("made"), sample_text, eos_token=END))


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_ids_are_those_of_transformers(tmp_path: Path, sample_text: str, kind: str) -> None:
    """Texts have no spelled-out special tokens, because we encode those as ordinary text."""
    from transformers import PreTrainedTokenizerFast

    folder = save(tmp_path / "t", sample_text * 3, kind, eos_token=END)
    theirs, found = PreTrainedTokenizerFast.from_pretrained(str(folder)), ours(folder)
    for text in (sample_text.replace(END, ""), *HOSTILE):
        expected = theirs.encode(text, add_special_tokens=False)
        assert found.encode(text) == expected
        decoded = theirs.decode(expected, clean_up_tokenization_spaces=False)
        assert found.decode(expected) == decoded
        if kind == "byte level":
            assert decoded == text
    assert found.eod == theirs.eos_token_id and found.vocab_size == len(theirs)


def test_special_tokens_in_a_text_are_ordinary_text(made: Ours, sample_text: str) -> None:
    assert END in sample_text and made.eod not in made.encode(sample_text)
    assert made.decode(made.encode(sample_text)) == sample_text
    assert made.decode([*made.encode("a"), made.eod]) == "a"


def test_half_a_surrogate_pair_becomes_the_replacement_character(made: Ours) -> None:
    assert made.encode("a\ud83db") == made.encode("a\ufffdb")


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path, sample_text: str) -> None:
    path = save(tmp_path / "t", sample_text) / "tokenizer.json"
    whole = ours(path).encode("a b c d")
    changed = Tokenizer.from_file(str(path))
    changed.enable_truncation(2)
    changed.enable_padding(length=9)
    changed.save(str(path))
    assert ours(path).encode("a b c d") == whole and len(whole) > 2


def test_a_long_run_of_one_character(made: Ours) -> None:
    text = " " * 1_200_000 + "x"
    assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "settings", "eod"),
    [
        ("tokenizer_config.json", {"eos_token": "<s>"}, 1),
        ("tokenizer_config.json", {"eos_token": {"content": "<s>", "__type": "AddedToken"}}, 1),
        ("config.json", {"eos_token_id": 1}, 1),
        ("generation_config.json", {"eos_token_id": [1, 2]}, 1),
        ("config.json", {"eos_token_id": 10**9}, 2),
    ],
)
def test_eod_from_the_files(tmp_path: Path, sample_text: str, name: str, settings: dict[str, Any], eod: int) -> None:
    folder = save(tmp_path / "t", sample_text)
    (folder / name).write_text(json.dumps(settings))
    assert ours(folder).eod == eod


def test_eod_from_the_flag(tmp_path: Path, sample_text: str) -> None:
    folder = save(tmp_path / "t", sample_text, eos_token=END)
    by_file, by_flag = ours(folder), ours(folder, eod_token="<s>")
    assert (by_file.eod, by_flag.eod) == (2, 1)
    assert by_flag.fingerprint != by_file.fingerprint == ours(folder / "tokenizer.json").fingerprint
    with refused("--eod-token <nix>", "<unk>"):
        ours(folder, eod_token="<nix>")


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"no JSON", b"\x80\x00", b"[" * 100_000, b'{"version": "1.0", "model": 3}']
)
def test_files_that_are_not_a_tokenizer_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with refused(f"--tokenizer-model {path}"):
        ours(path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with refused("--tokenizer-model", tmp_path / "tokenizer.json"):
        ours(tmp_path)
    with refused("--tokenizer-model", "HuggingFaceTokenizer"):
        build_tokenizer(TokenizerFiles("HuggingFaceTokenizer"))
