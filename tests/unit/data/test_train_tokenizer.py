"""Training a vocabulary: exact round trips, the same model every time, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.ltd.data.train_tokenizer import TrainedTokenizer, TrainTokenizerConfig, train_tokenizer
from megatron.ltd.tokenizers.base import Tokenizer
from megatron.ltd.tokenizers.build import build_tokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with this project's own source as JSON lines."""
    path = tmp_path_factory.mktemp("corpus") / "source.jsonl"
    sources = sorted(Path(__file__).parents[3].joinpath("megatron/ltd/data").glob("*.py"))
    path.write_text("".join(json.dumps({"text": file.read_text(encoding="utf-8")}) + "\n" for file in sources))
    return path


def trained(source: Path, name: str = "m", **values: object) -> TrainedTokenizer:
    """Train on ``source``; the model is written beside it."""
    settings = {"input": (str(source),), "vocab_size": 300, "output_prefix": str(source.with_name(name)), **values}
    return train_tokenizer(TrainTokenizerConfig(**settings))


def open_model(path: str) -> Tokenizer:
    return build_tokenizer(TokenizerFiles("SentencePieceTokenizer", tokenizer_model=path))


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    return open_model(trained(corpus, vocab_size=600).path)


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \t\n\r\u2581\0<s/>0x")), max_size=60
    )
)
def test_any_text_survives_encoding_and_decoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_source_survives_encoding_and_is_compressed(tokenizer: Tokenizer, corpus: Path) -> None:
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    ids = [tokenizer.encode(text) for text in texts]
    assert [tokenizer.decode(document) for document in ids] == texts
    assert sum(map(len, ids)) < sum(map(len, texts)) / 2
    assert tokenizer.eod not in sum(ids, [])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_same_input_same_model(model_type: str, corpus: Path) -> None:
    one, two = (trained(corpus, f"{model_type}-{name}", vocab_size=500, model_type=model_type).path for name in "ab")
    assert Path(one).read_bytes() == Path(two).read_bytes()


def test_less_text_is_spread_evenly(tmp_path: Path) -> None:
    # Twenty passages of one letter each: half of the text must hold every second letter, from start to end.
    letters = "abcdefghijklmnopqrst"
    text = "".join(f"{letter * 2500}\n" for letter in letters)
    (tmp_path / "t.txt").write_text(text)
    found = trained(tmp_path / "t.txt", max_train_mb=len(text) / 2e6)
    assert found.text_bytes == 10 * 2501
    tokenizer = open_model(found.path)
    assert [letter for letter in letters if len(tokenizer.encode(letter * 16)) < 16] == list(letters[1::2])


def test_a_vocabulary_below_the_characters_of_the_text_is_told_how_many_it_takes(tmp_path: Path) -> None:
    """256 bytes, 2 marks and 400 characters are needed; the error does not name an option of the library."""
    (tmp_path / "t.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 3)
    with refused("--vocab-size 300", 658) as caught:
        trained(tmp_path / "t.txt")
    assert "character_coverage" not in str(caught.value) and not list(tmp_path.glob("m*"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": ()}, ("--input",)),
        ({"output_prefix": None}, ("--output-prefix",)),
        ({"output_prefix": "nowhere/m"}, ("--output-prefix nowhere/m",)),
        ({"output_prefix": "there"}, ("--output-prefix", "there.model", "--overwrite")),
        ({"vocab_size": 9000}, ("--vocab-size 9000", "m.model")),
        ({"input": ("missing.txt",)}, ("--input", "missing.txt")),
        ({"input": ("bad.jsonl",)}, ("bad.jsonl:2",)),
        ({"input": ("empty.txt.gz",)}, ("--input empty.txt.gz",)),
    ],
)
def test_values_refused(
    values: dict, message: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("a small text to learn from\n" * 50)
    Path("bad.jsonl").write_text('{"text": "good"}\n{"text": "bad\n')
    Path("there.model").write_text("kept")
    Path("empty.txt.gz").write_bytes(gzip.compress(b""))
    with refused(*message) as error:
        trained(Path("t.txt"), **values)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "empty.txt.gz", "t.txt", "there.model"]
    assert Path("there.model").read_text() == "kept"
