"""GPT-2's encoding against Hugging Face's, on a vocabulary made here and on the published one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused

# The ids that Hugging Face's GPT2Tokenizer gives with the published files.
GOLD = {
    "Call me Ishmael.": [14134, 502, 1148, 21720, 417, 13],
    "It's 1868;  they'll say no": [1026, 338, 1248, 3104, 26, 220, 484, 1183, 910, 645],
    "\n\n    return x\t# naïve 東京 🙂": (
        [628, 220, 220, 220, 1441, 2124, 197, 2, 41492, 10545, 251, 109, 12859, 105, 32485]
    ),
    "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
}


def gpt2(folder: Path) -> Tokenizer:
    files = str(folder / "encoder.json"), str(folder / "vocab.bpe")
    return build_tokenizer(TokenizerFiles("GPT2BPETokenizer", *files))


def copied(folder: Path, target: Path) -> Path:
    return shutil.copytree(folder, target, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, sample_text: str) -> tuple[Path, ByteLevelBPETokenizer]:
    """A byte-level vocabulary like GPT-2's, trained by Hugging Face's library, and that library's tokenizer for it."""
    folder = tmp_path_factory.mktemp("small")
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator([sample_text * 3], vocab_size=340, min_frequency=2, show_progress=False)
    vocabulary_path, merges_path = theirs.save_model(str(folder))
    # As in GPT-2's own file, the end of document comes last.
    vocabulary = json.loads(Path(vocabulary_path).read_text())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    Path(merges_path).rename(folder / "vocab.bpe")
    return folder, theirs


def test_small_vocabulary_gives_hugging_faces_ids(small: tuple[Path, ByteLevelBPETokenizer], sample_text: str) -> None:
    folder, theirs = small
    ours = gpt2(folder)
    for text in (sample_text, "unseen Wörter\u2028\x00", " " * 1000 + "x", "", "a" * 500):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == theirs.get_vocab_size() + 1 and ours.eod == ours.vocab_size - 1


def test_a_changed_file_is_read_again(small: tuple[Path, ByteLevelBPETokenizer], tmp_path: Path) -> None:
    folder, _ = small
    vocabulary = json.loads((folder / "encoder.json").read_text())
    before = gpt2(copied(folder, tmp_path))
    merges = (tmp_path / "vocab.bpe").read_text().splitlines()
    last = merges.pop().replace(" ", "")
    del vocabulary[last]
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    (tmp_path / "vocab.bpe").write_text("\n".join(merges) + "\n")
    after = gpt2(tmp_path)
    assert before.fingerprint == gpt2(folder).fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("encoder.json", "not json", ("--vocab-file", "encoder.json")),
        ("encoder.json", "[" * 100_000, ("--vocab-file", "encoder.json")),
        ("encoder.json", '{"a": ' + "1" * 10_000 + "}", ("--vocab-file", "encoder.json")),
        ("encoder.json", '["a"]', ("--vocab-file", "encoder.json")),
        ("encoder.json", '{"a": 0}', ("--vocab-file",)),
        ("encoder.json", '{"a": 0, "<|endoftext|>": 1}', ("--vocab-file", "encoder.json", "--merge-file")),
        ("vocab.bpe", "#version: 0.2\na b\nabc\n", ("--merge-file", 3)),
        ("vocab.bpe", "#version: 0.2\n", ("--vocab-file", "encoder.json", "--merge-file")),
    ],
)
def test_bad_files_are_refused(
    name: str, content: str, message: tuple[object, ...], small: tuple[Path, ByteLevelBPETokenizer], tmp_path: Path
) -> None:
    (copied(small[0], tmp_path) / name).write_text(content)
    with refused(*message):
        gpt2(tmp_path)


def test_merges_in_another_order_are_refused(small: tuple[Path, ByteLevelBPETokenizer], tmp_path: Path) -> None:
    first, *merges = (copied(small[0], tmp_path) / "vocab.bpe").read_text().splitlines()
    (tmp_path / "vocab.bpe").write_text("\n".join([first, *reversed(merges)]) + "\n")
    with refused("--vocab-file", "--merge-file"):
        gpt2(tmp_path)


def test_published_vocabulary_gives_gold_ids(shared_data: Path) -> None:
    tokenizer = gpt2(shared_data / "gpt2-vocab")
    assert {text: tokenizer.encode(text) for text in GOLD} == GOLD
    assert (tokenizer.vocab_size, tokenizer.eod) == (50257, 50256)
