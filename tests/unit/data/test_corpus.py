"""The built-in corpus, from a standard library made up here and from that of the running Python."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from pathlib import Path

import pytest

from megatron.ltd.data.builtin.corpus import CorpusConfig, collect_documents, write_corpus
from megatron.ltd.data.builtin.prose import prose
from tests.support_errors import refused


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library: 40 modules, and every kind of file that the corpus must leave out."""
    folder = tmp_path / "lib"
    for name in ("test", "json/tests", "site-packages/x", "__pycache__", "json"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "module.py").write_text(f"# in {name}\n")
    for number in range(40):
        (folder / f"m{number:02}.py").write_text(f"x = {number}  # é\n" * (number + 1))
    (folder / "_sysconfigdata_linux.py").write_text("paths = 1\n")
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "blank.py").write_text("\n")
    (folder / "notes.txt").write_text("not source")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    return folder


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def paths(*files: Path) -> list[str]:
    return [document["path"] for file in files for document in read(file)]


def test_documents_are_the_source_outside_tests(library: Path) -> None:
    documents, unreadable = collect_documents(library)
    assert [document.path for document in documents] == [
        "json/module.py",
        *(f"m{number:02}.py" for number in range(40)),
    ]
    assert documents[3].text == (library / "m02.py").read_text() and unreadable == 1


def test_parts_are_whole_sorted_and_recorded(library: Path, tmp_path: Path) -> None:
    info = write_corpus(CorpusConfig(output_dir=str(tmp_path / "out"), held_out_fraction=0.25))
    train, valid = read(tmp_path / "out/train.jsonl"), read(tmp_path / "out/valid.jsonl")
    assert len({*paths(tmp_path / "out/train.jsonl", tmp_path / "out/valid.jsonl")}) == len(train) + len(valid) == 41
    assert 3 <= len(valid) <= 18
    for part, recorded in ((train, info.train), (valid, info.valid)):
        assert part == sorted(part, key=lambda document: document["path"])
        assert recorded.text_bytes == sum(len(document["text"].encode()) for document in part)
    recorded = json.loads((tmp_path / "out/corpus.json").read_text())
    assert recorded["train"]["sha256"] == hashlib.sha256((tmp_path / "out/train.jsonl").read_bytes()).hexdigest()
    assert recorded["unreadable_files"] == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["corpus.json", "train.jsonl", "valid.jsonl"]


def test_a_document_stays_in_its_split(library: Path, tmp_path: Path) -> None:
    config = CorpusConfig(output_dir=str(tmp_path / "out"), held_out_fraction=0.25)
    write_corpus(config)
    first = (tmp_path / "out/train.jsonl").read_bytes()
    held_out = paths(tmp_path / "out/valid.jsonl")
    write_corpus(config)
    assert (tmp_path / "out/train.jsonl").read_bytes() == first
    (library / "new.py").write_text("something new")
    write_corpus(config)
    assert {*paths(tmp_path / "out/valid.jsonl")} - {"new.py"} == {*held_out}


def test_less_text_on_request(library: Path, tmp_path: Path) -> None:
    full = write_corpus(CorpusConfig(output_dir=str(tmp_path / "full"), held_out_fraction=0.3))
    half_mb = (full.train.text_bytes + full.valid.text_bytes) / 2e6
    half = write_corpus(CorpusConfig(output_dir=str(tmp_path / "half"), held_out_fraction=0.3, max_mb=half_mb))
    assert 0.9 * half_mb < (half.train.text_bytes + half.valid.text_bytes) / 1e6 <= half_mb
    assert half.valid.documents
    assert {*paths(tmp_path / "half/train.jsonl")} < {*paths(tmp_path / "full/train.jsonl")}


def test_the_running_pythons_library(tmp_path: Path) -> None:
    info = write_corpus(CorpusConfig(output_dir=str(tmp_path)))
    assert 5e6 < info.train.text_bytes < 30e6
    assert 0.01 < info.valid.documents / (info.valid.documents + info.train.documents) < 0.12
    found = {*paths(tmp_path / "train.jsonl", tmp_path / "valid.jsonl")}
    assert {"argparse.py", "json/decoder.py", "pydoc_data/topics.py/assert"} <= found
    assert not any("/test" in path or path.startswith("test") for path in found)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"output_dir": None}, ("--output-dir",)),
        ({"held_out_fraction": 1e-9}, ("--held-out-fraction 1e-09", 41)),
        ({"output_dir": "file/out"}, ("--output-dir",)),
    ],
)
def test_values_refused(
    values: dict, message: tuple[object, ...], library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with refused(*message):
        write_corpus(CorpusConfig(**{"output_dir": str(tmp_path / "out"), **values}))
    assert not (tmp_path / "out").exists()


SOURCE = """
'A module whose first sentence is long enough to be kept as prose.'
# A comment of two lines that reads like a sentence
# and is joined to a single line of text.

# A comment without an end that is long enough
# but is not a sentence

def area(side):
    '''Return the area of a square whose sides have the given length in metres.

    - of one item, which is long enough to be kept if it were not a list.

    >>> area(3)  # This is code that is long enough and has a full stop.

    Too short.

    0123456789 0123456789 0123456789 0123456789 0123456789 0123456789.

    Return the area of a square whose sides have the given length in metres.
    '''
    return side * side
"""


def test_prose_is_the_sentences_of_docstrings_and_comments_each_once() -> None:
    assert prose(SOURCE).split("\n\n") == [
        "A module whose first sentence is long enough to be kept as prose.",
        "Return the area of a square whose sides have the given length in metres.",
        "A comment of two lines that reads like a sentence and is joined to a single line of text.",
    ]


@pytest.mark.parametrize("source", ["def", "x = 1\0", "(" * 5000, ""])
def test_source_that_is_not_python_has_no_prose(source: str) -> None:
    assert prose(source) == ""


def test_a_corpus_of_prose(library: Path, tmp_path: Path) -> None:
    """Modules without prose are left out; held-out documents are drawn as in a corpus of whole files."""
    for number in range(40):
        (library / f"m{number:02}.py").write_text(
            SOURCE.replace("metres", f"metres {number}") if number % 2 else "x = 1"
        )
    write_corpus(CorpusConfig(output_dir=str(tmp_path / "out"), text="prose", held_out_fraction=0.3))
    train, valid = read(tmp_path / "out/train.jsonl"), read(tmp_path / "out/valid.jsonl")
    assert {document["path"] for document in (*train, *valid)} == {f"m{number:02}.py" for number in range(1, 40, 2)}
    assert valid and all(document["text"].startswith("A module whose") for document in (*train, *valid))
