"""Labelled sentences read from files, and the errors of bad files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from megatron.ltd.data.labelled_text import Columns, LabelledText, read_labelled
from tests.support_errors import refused


def read(path: Path, columns: Columns | None = None, classes: tuple[str | int, ...] | None = None) -> LabelledText:
    return read_labelled(str(path), columns or Columns(), flag="--train-data-path", classes=classes)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_json_lines_and_tables_give_the_same_rows(tmp_path: Path, mark: bytes) -> None:
    samples = [("a good\u2028film", "pos"), ("dull", "neg"), ('it "works"', "pos")]
    objects = b"\n\n".join(json.dumps({"text": text, "label": label}).encode() for text, label in samples)
    rows = "label\ttext\n" + "".join(f"{label}\t{text}\r\n" for text, label in samples)
    (tmp_path / "some.jsonl").write_bytes(mark + objects)
    (tmp_path / "some.tsv").write_bytes(mark + rows.replace("label\ttext\n", "label\ttext\r\n").encode())
    for name in ("some.jsonl", "some.tsv"):
        found = read(tmp_path / name)
        assert found.sentences == tuple((text,) for text, _ in samples)
        assert found.labels == (1, 0, 1) and found.classes == ("neg", "pos")
        assert found.fingerprint == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_pairs_numbers_and_the_classes_of_the_training_data(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"a": "x", "b": f"y{n}", "gold": n}) + "\n" for n in (10, 9, 10)))
    columns = Columns(text="a", pair="b", label="gold")
    found = read(path, columns)
    assert found.sentences[0] == ("x", "y10") and found.classes == (9, 10) and found.labels == (1, 0, 1)
    assert read(path, columns, classes=(8, 9, 10)).labels == (2, 1, 2)


GOOD = '{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "place", "names"),
    [
        ("no.csv", "x", "", ()),
        ("no.jsonl", None, "", ()),
        ("no.jsonl", "\n", "", ()),
        ("no.jsonl", GOOD[:28] * 2, "", ("'a'",)),
        ("no.jsonl", GOOD + "{", ":3", ("JSON",)),
        ("no.jsonl", GOOD + "[1]", ":3", ()),
        ("no.jsonl", GOOD + '{"label": "a"}', ":3", ('"text"',)),
        ("no.jsonl", GOOD + '{"text": 3, "label": "a"}', ":3", ('"text"', "int")),
        ("no.jsonl", GOOD + '{"text": " ", "label": "a"}', ":3", ('"text"',)),
        ("no.jsonl", GOOD + '{"text": "z"}', ":3", ()),
        ("no.jsonl", GOOD + '{"text": "z", "label": 1.5}', ":3", ("1.5", "float")),
        ("no.jsonl", GOOD + '{"text": "z", "label": true}', ":3", ("True", "bool")),
        ("no.jsonl", GOOD + '{"text": "z", "label": 7}', ":3", ("7", "'a'")),
        ("no.jsonl", GOOD + '{"text": "\\ud800", "label": "a"}', ":3", ('"text"',)),
        ("no.jsonl", GOOD + '{"text": "z", "label": ' + "7" * 5000 + "}", ":3", ("JSON",)),
        ("no.jsonl", b'{"text": "\xff", "label": "a"}', ":1", ("UTF-8", 10)),
        ("no.tsv", "text\nx", ":1", ('"label"', "text")),
        ("no.tsv", "", "", ()),
        ("no.tsv", "text\tlabel\nx\ta\ny", ":3", (1, 2)),
        ("no.tsv", "text\tlabel\nx\t", ":2", ()),
    ],
)
def test_bad_files_are_refused_by_line(
    tmp_path: Path, name: str, content: str | bytes | None, place: str, names: tuple[object, ...]
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with refused(f"{path}{place}", *names):
        read(path)


def test_labels_that_are_not_in_training_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(GOOD)
    with refused(2, "b", "a", "c"):
        read(tmp_path / "some.jsonl", classes=("a", "c"))


def test_an_open_text_is_named_by_its_column(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "b')
    with refused("rows.jsonl:1", "not JSON (Unterminated string starting at column 10)"):
        read(tmp_path / "rows.jsonl")
