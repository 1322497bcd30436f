"""Which input files are read, how they are split into documents and shards, and the errors of bad lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.ltd.data.inputs.documents import RawChunk, Shard, parse_chunk, read_chunks
from megatron.ltd.data.inputs.files import InputFile, find_inputs
from tests.support_errors import refused
from tests.unit.data.inputs.test_files import texts_of


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text(alphabet=st.characters(codec="utf-8")), min_size=1, max_size=20), size=st.integers(1, 200)
)
def test_any_chunk_size_gives_the_same_documents(
    texts: list[str], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("documents") / "d.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    assert texts_of(path, size=size) == texts
    chunks = list(read_chunks(find_inputs([str(path)]), size))
    assert sum(chunk.num_bytes for chunk in chunks) == path.stat().st_size


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=12), last_newline=st.booleans(),
    count=st.integers(1, 15), size=st.integers(1, 100),
)  # fmt: skip
def test_shards_in_order_are_the_whole_input(
    texts: list[str], last_newline: bool, count: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For any number of shards, every line of JSON, plain text and empty files is read exactly once."""
    folder = tmp_path_factory.mktemp("documents")
    lines = "\n".join(json.dumps({"text": text}) + "\n" * (place % 2) for place, text in enumerate(texts))
    (folder / "a.jsonl").write_text(lines + "\n" * last_newline)
    (folder / "b.txt").write_text("plain text")
    (folder / "c.txt").write_text("")
    (folder / "e.txt").write_text("")
    (folder / "d.jsonl").write_text("\n".join('{"text": "%s"}' % ("x" * place) for place in range(5)))
    files = find_inputs([str(folder / name) for name in ("a.jsonl", "b.txt", "c.txt", "d.jsonl", "e.txt")])
    whole = [line for chunk in read_chunks(files) for line in chunk.lines]
    assert sum(not chunk.file.is_json for chunk in read_chunks(files)) == 3
    parts = [
        [line for chunk in read_chunks(files, size, Shard(number, count)) for line in chunk.lines]
        for number in range(1, count + 1)
    ]
    assert [line for part in parts for line in part] == whole


def test_shards_share_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(f'{{"text": "{number:04}"}}\n' for number in range(1000)))
    files = find_inputs([str(path)])
    for number in range(1, 9):
        assert sum(chunk.num_bytes for chunk in read_chunks(files, 100, Shard(number, 8))) == path.stat().st_size / 8


def test_a_bad_line_of_a_shard_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(700)) + "[]\n" + '{"text": ""}\n' * 99)
    with refused("d.jsonl:701"):
        for chunk in read_chunks(find_inputs([str(path)]), 1000, Shard(3, 3)):
            parse_chunk(chunk, ["text"], skip_bad_lines=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", ("--shard 3", 1, 8)),
        ("a/8", ("--shard a/8",)),
        ("-1/8", ("--shard -1/8",)),
        ("0/8", ("--shard 0/8", 1, 8)),
        ("9/8", ("--shard 9/8", 8)),
        ("1/0", ("--shard 1/0", 0, 1)),
    ],
)
def test_bad_shard_numbers_are_refused(text: str, message: tuple[object, ...]) -> None:
    with refused(*message):
        Shard.parse(text)


def test_kind_of_file_by_name_then_by_content(tmp_path: Path) -> None:
    line = '{"text": "inside"}\n'
    for name in ("a.jsonl", "b.JSON", "c.data", "d.txt"):
        (tmp_path / name).write_text(line)
    (tmp_path / "e.data").write_text("plain\ntext\n")
    names = ["a.jsonl", "b.JSON", "c.data", "d.txt", "e.data"]
    assert texts_of(*(tmp_path / name for name in names)) == ["inside", "inside", "inside", line, "plain\ntext\n"]


def test_patterns_are_sorted_and_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "[a].txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert texts_of(tmp_path / "*.txt") == ["[a].txt", "a.txt", "b.txt"]
    assert texts_of(tmp_path / "[a].txt") == ["[a].txt"]


def test_byte_order_marks_and_empty_lines_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree\r\n")
    assert texts_of(tmp_path / "a.jsonl", tmp_path / "b.txt") == ["one", "two", "three\r\n"]


BAD_LINES = {
    '{"text": "cut': "JSON",
    '["text"]': "list",
    '{"body": "x"}': '"body"',
    '{"text": 7}': "int",
    '{"text": "\\ud800"}': "surrogate",
    "[" * 100_000: "JSON",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_lines_are_named_or_counted(bad: str) -> None:
    lines = tuple(line.encode() for line in ('{"text": "good"}\n', bad + "\n", '{"text": "more"}\n'))
    chunk = RawChunk(InputFile("f.jsonl", 1, is_json=True), lines, lines_before=40)
    with refused("f.jsonl:42", BAD_LINES[bad], "--skip-bad-lines"):
        parse_chunk(chunk, ["text"], skip_bad_lines=False)
    parsed = parse_chunk(chunk, ["text"], skip_bad_lines=True)
    assert parsed.texts == (("good",), ("more",)) and parsed.bad_lines == 1


def test_bytes_that_are_not_utf8_are_refused() -> None:
    line = b'{"text": "caf\xe9"}\n'
    with refused("f.jsonl:1", "UTF-8", 13):
        parse_chunk(RawChunk(InputFile("f.jsonl", 1, is_json=True), (line,)), ["text"], skip_bad_lines=False)
    with refused("f.txt", "UTF-8", 3):
        parse_chunk(RawChunk(InputFile("f.txt", 1, is_json=False), (b"caf\xe9",)), ["text"], skip_bad_lines=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", "none.txt: no such file"),
        ("*.csv", "no such file"),
        ("folder", ".jsonl"),
        ("empty.txt", "empty"),
    ],
)
def test_inputs_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    with refused("--input", message):
        find_inputs([str(tmp_path / name)])
