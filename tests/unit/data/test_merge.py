"""Joined datasets: byte for byte equal to one command's output for all of the text, and what cannot be joined."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron.ltd.data import merge as merge_module
from megatron.ltd.data.merge import MergeConfig, merge
from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.config import TokenizerFiles
from tests.end_to_end.runs import snapshot
from tests.support_errors import assert_names, refused

BYTES = TokenizerFiles("ByteTokenizer")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, *texts: str, **values: object) -> str:
    """Write a dataset of ``texts``; returns its prefix."""
    Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"input": (f"{name}.jsonl",), "output_prefix": name, "append_eod": True, **values}
    return next(iter(preprocess(PreprocessConfig(**settings), BYTES).cards))


def join(*prefixes: str, **values: object) -> merge_module.MergeResult:
    return merge(MergeConfig(**{"input": prefixes, "output_prefix": "joined", **values}))


def content(prefix: str) -> list[bytes]:
    return [Path(prefix + suffix).read_bytes() for suffix in (".bin", ".idx", ".json")]


@pytest.mark.parametrize("sentences", [False, True])
@pytest.mark.parametrize("block_entries", [3, 1 << 20])
def test_joined_shards_equal_the_files_of_one_command(
    sentences: bool, block_entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_module, "_BLOCK_ENTRIES", block_entries)
    monkeypatch.setattr(merge_module, "_BLOCK_BYTES", 1000)
    how: dict[str, object] = {"split_sentences": sentences, "append_eod": not sentences}
    texts = [f"Text {number}. " * (number % 7) for number in range(100)]
    whole = write("whole", *texts, **how)
    parts = []
    for number in range(1, 6):
        config = PreprocessConfig(
            input=("whole.jsonl",), output_prefix=f"part{number}", shard=f"{number}/5", **how  # type: ignore[arg-type]
        )  # fmt: skip
        parts += preprocess(config, BYTES).cards
    result = join(*(f"{part}.idx" for part in parts))
    assert content("joined") == content(whole)
    assert (result.documents, result.tokens) == (85, os.path.getsize("joined.bin") / 2)
    assert f"joined: 85 documents, {result.tokens:,} tokens of 5 datasets, " in result.summary()


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([1, 3, 2], (3, 2)),
        ([1, 2], (3,)),
        ([2, 3], (2, 3, 1)),
        ([1, 0, 2, 3], (2, 3)),
    ],
)
def test_missing_or_misordered_shards_are_refused(order: list[int], message: tuple[object, ...]) -> None:
    names = {0: write("other", "Another text.")}
    Path("whole.jsonl").write_text("".join(json.dumps({"text": f"Text {number}."}) + "\n" for number in range(30)))
    for number in (1, 2, 3):
        config = PreprocessConfig(
            input=("whole.jsonl",), output_prefix=f"part{number}", append_eod=True, shard=f"{number}/3"
        )
        (names[number],) = preprocess(config, BYTES).cards
    with refused(*message):
        join(*(names[number] for number in order))
    assert not Path("joined.bin").exists()
    assert join(*(names[number] for number in (0, 1, 2, 3))).documents == 31


def test_megatron_core_reads_the_documents_in_the_order_given(capsys: pytest.CaptureFixture[str]) -> None:
    prefixes = [
        write(name, *texts) for name, texts in (("b", ["zwei", "3"]), ("a", ["eins"]), ("c", ["vier", "5", "6"]))
    ]
    join(*prefixes)
    dataset = IndexedDataset("joined")
    texts = [bytes(dataset[index][:-1].tolist()).decode() for index in range(len(dataset))]
    assert texts == ["zwei", "3", "eins", "vier", "5", "6"]
    assert dataset.document_indices.tolist() == list(range(7))
    assert capsys.readouterr().out == "".join(
        f"{number} of 3: {prefix}, {os.path.getsize(prefix + '.bin')} B\n" for number, prefix in enumerate(prefixes, 1)
    )


def test_data_made_elsewhere_has_no_cards_and_gets_none() -> None:
    prefixes = [write("a", "one"), write("b", "two")]
    for prefix in prefixes:
        os.remove(f"{prefix}.json")
    Path("joined.json").write_text("of other data")
    result = join(*prefixes, overwrite=True)
    assert_names(result.summary(), ".json")
    assert not os.path.exists("joined.json") and len(IndexedDataset("joined")) == 2


def test_the_card_names_the_keys_of_all_parts() -> None:
    Path("b.jsonl").write_text('{"body": "two"}\n')
    config = PreprocessConfig(input=("b.jsonl",), output_prefix="b", append_eod=True, json_keys=("body",))
    join(write("a", "one"), *preprocess(config, BYTES).cards, write("c", "three"))
    assert json.loads(Path("joined.json").read_text())["json_key"] == "text body"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("stage", ["_join_indices", "check"])
def test_an_interruption_leaves_existing_files(
    interruption: BaseException, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = [write("a", "one"), write("b", "two")]
    join(prefixes[0])
    before = snapshot(Path())

    def interrupted(*_: object) -> None:
        assert any(".tmp-" in name for name in os.listdir())
        raise interruption

    if stage == "check":
        monkeypatch.setattr(merge_module.DatasetCard, "write", interrupted)
    else:
        monkeypatch.setattr(merge_module, stage, interrupted)
    expected = KeyboardInterrupt if interruption is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        join(*prefixes, overwrite=True)
    assert snapshot(Path()) == before


def damage(prefix: str, how: str) -> None:
    """Make a dataset unfit to be joined."""
    card = json.loads(Path(f"{prefix}.json").read_text())
    fields = {"tokenizer": {"tokenizer_fingerprint": "f" * 64}, "end of document": {"append_eod": False}}
    if how in fields:
        Path(f"{prefix}.json").write_text(json.dumps(card | fields[how]))
    elif how == "no card":
        os.remove(f"{prefix}.json")
    elif how == "bytes":
        data = bytearray(Path(f"{prefix}.bin").read_bytes())
        data[0] ^= 1
        Path(f"{prefix}.bin").write_bytes(data)
    elif how == "cut":
        Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-2])
    elif how == "dtype":
        data = Path(f"{prefix}.bin").read_bytes()
        wide = b"".join(data[place : place + 2] + b"\0\0" for place in range(0, len(data), 2))
        index = bytearray(Path(f"{prefix}.idx").read_bytes())
        index[17] = 4  # the code of int32; the only document still starts at 0
        Path(f"{prefix}.bin").write_bytes(wide)
        Path(f"{prefix}.idx").write_bytes(index)
        Path(f"{prefix}.json").write_text(json.dumps(card | {"bin_sha256": hashlib.sha256(wide).hexdigest()}))
    else:
        os.remove(f"{prefix}.{how}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("tokenizer", ("--input", "ByteTokenizer")),
        ("end of document", ("--input", "--append-eod")),
        ("no card", ("--input", "b_text_document.json")),
        ("bytes", ("--input", "b_text_document.bin")),
        ("cut", ("--input", "b_text_document.bin", 6, "b_text_document.idx", 8)),
        ("dtype", ("--input",)),
        ("bin", ("--input", "b_text_document.bin")),
        ("idx", ("--input", "b_text_document.idx")),
    ],
)
def test_parts_that_do_not_fit_are_refused(how: str, message: tuple[object, ...]) -> None:
    prefixes = [write("a", "one"), write("b", "two")]
    damage(prefixes[1], how)
    before = snapshot(Path())
    with refused(*message):
        join(*prefixes)
    assert snapshot(Path()) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": ()}, ("--input",)),
        ({"output_prefix": None}, ("--output-prefix",)),
        ({"input": ("a_text_document", "./a_text_document.idx")}, ("--input",)),
        ({"output_prefix": "a_text_document"}, ("--output-prefix", "--input")),
        ({"output_prefix": "b_text_document"}, ("b_text_document.bin", "--overwrite")),
        ({"output_prefix": "nowhere/d"}, ("--output-prefix nowhere/d",)),
    ],
)
def test_values_refused(values: dict[str, object], message: tuple[object, ...]) -> None:
    write("a", "one")
    write("b", "two")
    before = snapshot(Path())
    with refused(*message):
        merge(MergeConfig(**({"input": ("a_text_document",), "output_prefix": "joined"} | values)))
    assert snapshot(Path()) == before
