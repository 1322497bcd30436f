"""Text to indexed tokens: compared with direct tokenization, for any number of workers, and safe on failure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data import preprocess as preprocess_module
from megatron.ltd.data.preprocess import PreprocessConfig, PreprocessResult, preprocess
from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.byte import ByteTokenizer
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.support_errors import refused

TOKENIZER = ByteTokenizer()
BYTES = TokenizerFiles("ByteTokenizer")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_lines(name: str, *items: object) -> str:
    Path(name).write_text("".join(json.dumps(item) + "\n" for item in items))
    return name


def run(*inputs: str, **values: object) -> PreprocessResult:
    return preprocess(PreprocessConfig(**{"input": inputs, "output_prefix": "out", **values}), BYTES)


def documents_at(prefix: str) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset[index].tolist() for index in range(len(dataset))]


def test_documents_are_their_encoded_text() -> None:
    texts = ["one", "zwölf\n", "", "three"]
    result = run(write_lines("a.jsonl", *({"text": text} for text in texts)), append_eod=True)
    assert documents_at("out_text_document") == [[*TOKENIZER.encode(text), 256] for text in texts if text]
    card = result.cards["out_text_document"]
    assert (card.documents, card.tokens, result.empty_documents) == (3, 3 + 7 + 5 + 3, 1)
    assert card.bin_sha256 == hashlib.sha256(Path("out_text_document.bin").read_bytes()).hexdigest()
    assert json.loads(Path("out_text_document.json").read_text())["tokenizer_fingerprint"] == TOKENIZER.fingerprint
    assert "out_text_document: 3 documents, 18 tokens" in result.summary()
    assert "1 empty document left out" in result.summary()
    assert IndexedDataset("out_text_document").document_indices.tolist() == [0, 1, 2, 3]


def test_sentences_are_kept_apart() -> None:
    """Each sentence is a sequence, cut if it is longer than Megatron-Core accepts; documents keep their bounds."""
    texts = (f"It rains. We stay.\n{'x' * 1100}", "", "One.")
    run(write_lines("a.jsonl", *({"text": text} for text in texts)), split_sentences=True)
    pieces = [b"It rains.", b"We stay. " + b"x" * 503, b"x" * 512, b"x" * 85, b"One."]
    assert documents_at("out_text_sentence") == [list(piece) for piece in pieces]
    assert IndexedDataset("out_text_sentence").document_indices.tolist() == [0, 4, 5]
    card = json.loads(Path("out_text_sentence.json").read_text())
    assert (card["documents"], card["tokens"]) == (2, sum(map(len, pieces)))


def test_each_key_has_its_own_output() -> None:
    run(write_lines("a.jsonl", {"q": "why", "a": "so"}, {"q": "how", "a": "thus"}), json_keys=("q", "a"))
    assert documents_at("out_q_document") == [list(b"why"), list(b"how")]
    assert documents_at("out_a_document") == [list(b"so"), list(b"thus")]


def test_files_are_read_in_the_order_given() -> None:
    Path("b.txt").write_text("second\nfile")
    run(write_lines("a.jsonl", {"text": "first"}), "b.txt", write_lines("c.jsonl", {"text": "third"}))
    assert documents_at("out_text_document") == [list(b"first"), list(b"second\nfile"), list(b"third")]


def test_workers_give_the_same_files() -> None:
    write_lines("a.jsonl", *({"text": f"line {number} " * (number % 50)} for number in range(6000)))
    assert os.path.getsize("a.jsonl") > 2 * (512 << 10)
    run("a.jsonl", append_eod=True, output_prefix="one")
    run("a.jsonl", append_eod=True, output_prefix="two", workers=2)
    for suffix in ("bin", "idx", "json"):
        one, two = (Path(f"{prefix}_text_document.{suffix}").read_bytes() for prefix in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_lines_stop_or_are_counted(workers: int) -> None:
    Path("a.jsonl").write_text('{"text": "a"}\n{"text": \n{"text": "b"}\n')
    with refused("a.jsonl:2"):
        run("a.jsonl", workers=workers)
    assert os.listdir() == ["a.jsonl"]
    result = run("a.jsonl", workers=workers, skip_bad_lines=True)
    assert documents_at("out_text_document") == [[97], [98]]
    assert result.bad_lines == 1 and "1 bad line skipped" in result.summary()


def test_output_is_kept_without_overwrite() -> None:
    run(write_lines("a.jsonl", {"text": "old"}))
    write_lines("b.jsonl", {"text": "new"})
    with refused("--output-prefix", "out_text_document.bin", "--overwrite"):
        run("b.jsonl")
    assert documents_at("out_text_document") == [list(b"old")]
    run("b.jsonl", overwrite=True)
    assert documents_at("out_text_document") == [list(b"new")]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_the_old_output_and_no_temporary_file(
    interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(write_lines("a.jsonl", {"text": "old"}))
    encode_all = preprocess_module.encode_all

    def interrupted(*arguments: object) -> Iterator[object]:
        yield from encode_all(*arguments)
        assert any(".tmp-" in name for name in os.listdir())
        raise interruption

    monkeypatch.setattr(preprocess_module, "encode_all", interrupted)
    expected = KeyboardInterrupt if interruption is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        run("a.jsonl", overwrite=True)
    assert sorted(os.listdir()) == ["a.jsonl", *(f"out_text_document.{suffix}" for suffix in ("bin", "idx", "json"))]
    assert documents_at("out_text_document") == [list(b"old")]


def test_the_size_of_a_small_input_is_readable() -> None:
    result = run(write_lines("a.jsonl", {"text": "x" * 500}))
    shown = replace(result, seconds=0.25).summary()
    assert shown == "out_text_document: 1 document, 500 tokens, 513 B in 0.2 s (2.052 KB/s, 2.000 K tokens/s)"


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(write_lines("a.jsonl", *({"text": "x"} for _ in range(10))), log_interval=5)
    assert capsys.readouterr().out.startswith("10 documents, 100%, ")
    run("a.jsonl", overwrite=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": ()}, ("--input",)),
        ({"output_prefix": None}, ("--output-prefix",)),
        ({"shard": "2"}, ("--shard 2",)),
        ({"shard": "3/9"}, ("--shard 3/9", "text", "--input", "a.jsonl")),
        ({"append_eod": True, "split_sentences": True}, ("--append-eod", "--split-sentences")),
        ({"json_keys": ("text", "text")}, ("--json-keys",)),
        ({"json_keys": ("text", "title"), "input": ("b.txt",)}, ("b.txt",)),
        ({"output_prefix": "nowhere/out"}, ("--output-prefix nowhere/out",)),
        ({"input": ("blank.jsonl",)}, ("--input", "blank.jsonl", "text")),
        ({"input": ("none.jsonl",)}, ("--input", "none.jsonl")),
        ({"input": ("latin.txt",)}, ("latin.txt", "UTF-8", 3)),
    ],
)
def test_values_refused(values: dict, message: tuple[object, ...]) -> None:
    write_lines("a.jsonl", {"text": "a"})
    write_lines("blank.jsonl", {"text": ""})
    Path("b.txt").write_text("b")
    Path("latin.txt").write_bytes(b"caf\xe9")
    before = sorted(os.listdir())
    with refused(*message):
        run(**{"input": ("a.jsonl",), **values})
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(in_folder: Path) -> None:
    write_lines("a.jsonl", {"text": "a"})
    (in_folder / "locked").mkdir(mode=0o500)
    with refused("--output-prefix locked/out"):
        run("a.jsonl", output_prefix="locked/out")
