"""Labelled sentences out of files, and what is said of bad ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from megatron.ltd.data.labelled_text import Columns, LabelledText, read_labelled
from megatron.ltd.errors import UserError
from tests.support_errors import refused


def read(path: Path, columns: Columns | None = None, classes: tuple[str | int, ...] | None = None) -> LabelledText:
    return read_labelled(str(path), columns or Columns(), flag="--train-data-path", classes=classes)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
def test_json_lines_and_tables_say_the_same(tmp_path: Path, mark: bytes) -> None:
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
    ("name", "content", "said"),
    [
        ("no.csv", "x", "no.csv"),
        ("no.jsonl", None, "no.jsonl"),
        ("no.jsonl", "\n", "no.jsonl"),
        ("no.jsonl", GOOD[:28] * 2, "every label is 'a'"),
        ("no.jsonl", GOOD + "{", r":3: not JSON"),
        ("no.jsonl", GOOD + "[1]", r":3: a JSON list where an object"),
        ("no.jsonl", GOOD + '{"label": "a"}', r':3: no "text"'),
        ("no.jsonl", GOOD + '{"text": 3, "label": "a"}', r':3: "text" is a int'),
        ("no.jsonl", GOOD + '{"text": " ", "label": "a"}', r':3: "text" is empty'),
        ("no.jsonl", GOOD + '{"text": "z"}', r":3: the label .* is missing"),
        ("no.jsonl", GOOD + '{"text": "z", "label": 1.5}', r":3: the label .* 1.5 is a float"),
        ("no.jsonl", GOOD + '{"text": "z", "label": true}', r":3: the label .* True is a bool"),
        ("no.jsonl", GOOD + '{"text": "z", "label": 7}', r":3: the label 7 and the first one, 'a', are of two kinds"),
        ("no.jsonl", GOOD + '{"text": "\\ud800", "label": "a"}', r':3: "text" is no Unicode text'),
        ("no.jsonl", GOOD + '{"text": "z", "label": ' + "7" * 5000 + "}", r":3: not JSON"),
        ("no.jsonl", b'{"text": "\xff", "label": "a"}', r":1: not UTF-8 at byte 10"),
        ("no.tsv", "text\nx", r':1: no column "label" among text'),
        ("no.tsv", "", "no.tsv"),
        ("no.tsv", "text\tlabel\nx\ta\ny", r":3: 1 of the 2 columns that the first line names"),
        ("no.tsv", "text\tlabel\nx\t", r":2: the label .* is missing"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path: Path, name: str, content: str | bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=said) as raised:
        read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_labels_that_training_has_not_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(GOOD)
    with refused(2, "b", "a", "c"):
        read(tmp_path / "some.jsonl", classes=("a", "c"))
