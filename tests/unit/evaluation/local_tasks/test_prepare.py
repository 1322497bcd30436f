"""Conversion of published files, and refused files."""

from __future__ import annotations

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.local_tasks.prepare import PrepareConfig, prepare
from megatron.ltd.evaluation.local_tasks.raw_tasks import RAW_TASKS
from tests.support_errors import refused
from tests.unit.evaluation.local_tasks.published import BOOLQ, PIQA, WINOGRANDE, archive, lines

pytest.importorskip("lm_eval")
BLOCK = "Baking: A man kneads dough. he\n1\nsings.\nbakes it.\nleaves.\nsits.\n"


def converted(tmp_path: Path, task: str, content: bytes, name: str = "f.jsonl", split: str = "validation") -> Any:
    """The records into which a file is converted, and the remarks about it."""
    path = tmp_path / name
    path.write_bytes(content)
    prepared = prepare(PrepareConfig(task=task, output_dir=str(tmp_path / "out"), **{split: (str(path),)}))
    text = (tmp_path / "out" / task / f"{split}.jsonl").read_text()
    assert prepared.num_records == {split: len(text.splitlines())}
    return [json.loads(line) for line in text.splitlines()], prepared.remarks


def test_hellaswags_text_layout(tmp_path: Path) -> None:
    blocks = BLOCK + "Home: How to sweep. Take a broom.\n0\na\nb\nc\nd\n"
    records, remarks = converted(tmp_path, "hellaswag", bz2.compress(blocks.encode()), "h.txt.bz2")
    endings = ["sings.", "bakes it.", "leaves.", "sits."]
    first = {"activity_label": "Baking", "ctx_a": "A man kneads dough.", "ctx_b": "he", "label": "1"}
    assert records[0] == {**first, "endings": endings}
    assert (records[1]["ctx_a"], records[1]["ctx_b"]) == ("How to sweep. Take a broom.", "")
    assert remarks == {"come without ctx_a and ctx_b: cut at the last sentence's end": 2}


def test_boolq_of_google_gets_its_title_in_the_passage(tmp_path: Path) -> None:
    google = [
        {"question": "is tea hot", "title": "Tea", "passage": "Tea is made hot.", "answer": True},
        {"question": "is ice hot", "passage": "Ice is cold.", "answer": False},
    ]
    records, remarks = converted(tmp_path, "boolq", gzip.compress(lines(*google)), "dev.jsonl.gz")
    assert records[0] == {"question": "is tea hot", "passage": BOOLQ[0]["passage"], "label": 1}
    assert records[1]["passage"] == "Ice is cold." and records[1]["label"] == 0
    ((remark, count),) = remarks.items()
    assert count == 1 and remark.startswith('have no "title"')


def test_rte_of_super_glue(tmp_path: Path) -> None:
    published = {"premise": "Ann spoke.", "hypothesis": "Ann sang.", "label": "not_entailment", "idx": 3}
    records, _ = converted(tmp_path, "rte", lines(published))
    assert records == [{"sentence1": "Ann spoke.", "sentence2": "Ann sang.", "label": 1}]


def test_wikitext_with_unk_tokens_gets_a_remark(tmp_path: Path) -> None:
    records, remarks = converted(tmp_path, "wikitext", b" \n = A = \n \n <unk> . \n", "wiki.test.tokens", "test")
    assert records == [{"page": " = A = \n \n <unk> . \n"}]
    assert list(remarks.values()) == [1] and 'hold "<unk>"' in next(iter(remarks))


def test_byte_order_mark_line_ends_and_empty_lines(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "one two"}\r\n\r\n{"text": "line\\u2028end here"}\r\n'
    records, _ = converted(tmp_path, "lambada_openai", content, split="test")
    assert [record["text"] for record in records] == ["one two", "line\u2028end here"]


def test_the_source_of_the_data_is_recorded(tmp_path: Path) -> None:
    content = lines({"text": "one two"})
    converted(tmp_path, "lambada_openai", content, split="test")
    source = json.loads((tmp_path / "out" / "lambada_openai" / "source.json").read_text())
    assert source["task"] == "lambada_openai" and len(source["splits"]["test"][0]["sha256"]) == 64
    assert source["splits"]["test"][0]["file"] == "f.jsonl" and source["splits"]["test"][0]["bytes"] == len(content)


ARC = {"id": "a", "question": {"stem": "s", "choices": [{"text": "x", "label": "A"}]}, "answerKey": "A"}
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "another set": ("hellaswag", lines(ARC), 'f:1: expected "label" (0, 1, 2, 3, "0", "1", "2" or "3"), found the fi'),
    "a later line": (
        "boolq",
        lines(*BOOLQ, {**BOOLQ[0], "label": "y"}),
        'f:3: expected "label" to be true or false, fo',
    ),
    "no labels": ("piqa", lines(*PIQA), 'f:1: expected "label" (0, 1, "0" or "1"), found the fields "goal", "sol1"'),
    "no answers": ("winogrande", lines(WINOGRANDE[1]), 'f:1: expected "answer" ("1" or "2"), found the fields "qID"'),
    "no blank": ("winogrande", lines({**WINOGRANDE[0], "sentence": "x"}), 'to hold a blank, "_", found "x"'),
    "three endings": ("hellaswag", b"A: b\n0\n1\n2\n3\n", "f: expected JSON lines, or six lines an item, found 5"),
    "no activity": ("hellaswag", b"b\n0\n1\n2\n3\n4\n", "f:1: expected \"activity: context\", found 'b'"),
    "nested": ("multirc", lines({"passage": {"text": "t"}}), 'expected "questions" (a list), found the fields "text"'),
    "no object": ("copa", b"[[1]]", 'f, record 1: expected an object with "premise", found [1]'),
    "cut": ("boolq", lines(*BOOLQ)[:-20], "f:2: expected JSON, found "),
    "an open text": ("boolq", b'{"a": "b', "found something else (Unterminated string starting at column 7)"),
    "columns": ("rte", b"sentence1\tsentence2\tlabel\n0\tx\n", "f:2: expected 3 columns "),
    "label": ("rte", b"sentence1\tsentence2\tlabel\nx\ty\tmaybe\n", '"entailment" or "not_entailment", found "maybe"'),
    "word index": (
        "wsc",
        lines({"text": "a b", "label": True, "target": {"span1_index": 7, "span1_text": "a"}}),
        'expected "span1_index" to be the number of a word of "text", found 7',
    ),
    "encoding": ("boolq", b"\xff\xfe{", "f: expected UTF-8, found byte 0xff at 0"),
    "empty": ("boolq", b"", "f: expected records, found none"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_records_of_another_format_are_refused(case: str, tmp_path: Path) -> None:
    task, content, message = BAD_FILES[case]
    (tmp_path / "f").write_bytes(content)
    _refused(tmp_path, task, message, validation=(str(tmp_path / "f"),))


def _refused(tmp_path: Path, task: str, message: str, **given: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        prepare(PrepareConfig(task=task, output_dir=str(tmp_path / "out"), **given))
    found = str(raised.value)
    assert message in found and "\n" not in found and found.startswith("--")
    assert not (tmp_path / "out").exists()


def test_keys_outside_the_labels(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(lines({**ARC, "answerKey": "D"}))
    message = (
        'f:1: expected "answerKey" to be one of the labels A, found "D"; arc_easy is read from ARC-Easy-Test.jsonl'
    )
    _refused(tmp_path, "arc_easy", message, test=(str(tmp_path / "f"),))


def test_archives_and_labels(tmp_path: Path) -> None:
    (tmp_path / "z.zip").write_bytes(archive(a__val_jsonl=b"", **{"x__BoolQ__val.jsonl": b"", "BoolQ__val.jsonl": b""}))
    _refused(tmp_path, "boolq", "found x/BoolQ/val.jsonl, BoolQ/val.jsonl", validation=(str(tmp_path / "z.zip"),))
    (tmp_path / "e.zip").write_bytes(archive(**{"readme.md": b""}))
    message = (
        "e.zip: expected one member BoolQ/val.jsonl, found readme.md; extract the archive and give the file itself"
    )
    _refused(tmp_path, "boolq", message, validation=(str(tmp_path / "e.zip"),))
    for name in ("cut.zip", "cut.bz2", "cut.gz"):
        (tmp_path / name).write_bytes((archive(a=b"b") if name == "cut.zip" else b"\x1f\x8b\x08")[:20])
        _refused(tmp_path, "boolq", f"{name}: cannot be read (", validation=(str(tmp_path / name),))
    (tmp_path / "r.tar.gz").write_bytes(b"")
    _refused(tmp_path, "race", "found a .tar archive; extract it", test=(str(tmp_path / "r.tar.gz"),))
    (tmp_path / "v.jsonl").write_bytes(lines(*PIQA))
    (tmp_path / "v.lst").write_bytes(b"1\n")
    files = (str(tmp_path / "v.jsonl"), str(tmp_path / "v.lst"))
    _refused(tmp_path, "piqa", "v.jsonl: expected a label a record, found 1 for 2 records", validation=files)
    _refused(tmp_path, "piqa", "v.lst: expected the file that the labels belong to before them", validation=files[1:])


def test_wrong_or_missing_splits_are_refused(tmp_path: Path) -> None:
    _refused(tmp_path, "arc_easy", "ARC-Easy-Test.jsonl, or ARC-V1")
    _refused(tmp_path, "hellaswag", "--test t: ", test=("t",))
    _refused(tmp_path, "boolq", "--validation: gone: cannot be read (No such file", validation=("gone",))


def test_an_existing_folder_is_refused_and_unchanged(repository: Path, tmp_path: Path) -> None:
    """The command overwrites nothing."""
    (tmp_path / "f.jsonl").write_bytes(lines(*BOOLQ))
    tool, folder, file = repository / "tools" / "prepare_tasks.py", tmp_path / "d", str(tmp_path / "f.jsonl")
    ended = subprocess.run(
        [sys.executable, str(tool), "--task", "boolq", "--output-dir", str(folder), "--validation", file],
        env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, f"{folder}/boolq: 2 validation records for boolq\n"), ended.stderr
    written = (folder / "boolq" / "validation.jsonl").read_bytes()
    with refused(f"--output-dir {folder}", f"{folder / 'boolq'} exists"):
        prepare(PrepareConfig(task="boolq", output_dir=str(folder), validation=(file,)))
    assert (folder / "boolq" / "validation.jsonl").read_bytes() == written
    assert [path.name for path in folder.iterdir()] == ["boolq"]


def test_missing_flags_are_refused() -> None:
    with refused("--task", "hellaswag"):
        PrepareConfig()
    with refused("--output-dir"):
        PrepareConfig(task=next(iter(RAW_TASKS)))
