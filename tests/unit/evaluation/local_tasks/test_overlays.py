"""Overlays that point lm-eval's tasks to local files, and refused names and folders."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_GROUP
from megatron.ltd.evaluation.local_tasks.catalog import tasks_folder
from megatron.ltd.evaluation.local_tasks.overlays import check_tasks, local_tasks, task_folder, write_overlays
from megatron.ltd.small_files import whole_folder
from tests.support_errors import assert_names, refused

pytest.importorskip("lm_eval")
LAMBADA = {"text": "one two"}
ARC = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}


@pytest.fixture
def task_data(tmp_path: Path) -> Path:
    put(tmp_path / "data" / "lambada_openai" / "test.jsonl", LAMBADA)
    put(tmp_path / "data" / "arc_easy" / "test.jsonl", ARC)
    return tmp_path / "data"


def put(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_an_overlay_changes_only_the_data(task_data: Path, tmp_path: Path) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    assert write_overlays(task_data, tmp_path / "o") == ("arc_easy", "lambada_openai")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["arc_easy.yaml", "lambada_openai.yaml"]
    official = load_yaml(tasks_folder() / "arc" / "arc_easy.yaml")
    changed = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(task_data / "arc_easy" / "test.jsonl")}},
        "training_split": None,
        "validation_split": None,
    }
    assert load_yaml(tmp_path / "o" / "arc_easy.yaml") == {**official, **changed}
    put(task_data / "arc_easy" / "train.jsonl", ARC)
    write_overlays(task_data, tmp_path / "o")
    changed["dataset_kwargs"]["data_files"]["train"] = str(task_data / "arc_easy" / "train.jsonl")
    del changed["training_split"]
    assert load_yaml(tmp_path / "o" / "arc_easy.yaml") == {**official, **changed}


def test_the_folder_for_lm_eval_holds_what_it_lacks(task_data: Path) -> None:
    from lm_eval.tasks import TaskManager

    with task_folder(["arc_easy"], task_data) as folder:
        assert TaskManager(include_defaults=False, include_path=str(folder)).all_subtasks == [
            "arc_easy", "lambada_openai",
        ]  # fmt: skip
    assert not folder.exists()
    with task_folder([PAPER_GROUP]) as folder:
        assert TaskManager(include_defaults=False, include_path=str(folder)).all_groups == [PAPER_GROUP]
        assert importlib.import_module("lm_eval.tasks.super_glue.record.util")  # needs what transformers 5 lacks


def test_valid_names_are_accepted(task_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine")
    check_tasks(["hellaswag", "mmlu_anatomy", "mmlu", "ai2_arc", PAPER_GROUP, "arc_*", str(file)])
    check_tasks(["arc_easy", "lambada_openai"], task_data)


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("helaswag", "hellaswag"),
        ("random_ltd", "random_ltd_paper"),
        ("boolq_", "boolq"),
        ("zzzzzzzz", "lm-eval ls tasks"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(name: str, closest: str, task_data: Path) -> None:
    for folder in (None, task_data):
        with refused(f"--tasks {name}", closest):
            check_tasks(["hellaswag", name], folder)


def test_missing_data_are_named(task_data: Path) -> None:
    with pytest.raises(UserError, match=f"no data for piqa in --task-data {task_data} .*: arc_easy, lambada_openai$"):
        check_tasks(["piqa", "arc_easy"], task_data)
    with pytest.raises(UserError, match="no data for hellaswag, triviaqa, webqs, winogrande, .* record, wikitext in"):
        check_tasks([PAPER_GROUP], task_data)
    with pytest.raises(UserError, match=r"^--task-data /nowhere: .*DIR/<task>/<split>"):
        check_tasks(["piqa"], Path("/nowhere"))


def _refused(task_data: Path, tmp_path: Path) -> str:
    with pytest.raises(UserError) as raised:
        write_overlays(task_data, tmp_path / "o")
    assert not (tmp_path / "o").exists() and "\n" not in str(raised.value)
    return str(raised.value)


BAD_RECORDS = {
    "another field": ({"body": "one two"}, 'test.jsonl:2: expected "text" (text), found the fields "body"; lambada_op'),
    "half a character": ({"text": "one \ud83d"}, r'expected "text" to be text, found "one \ud83d"'),
    "no object": ([1], "expected a JSON object, found a list"),
    "one word": ({"text": "one"}, 'expected "text" to end in a space and a word'),
}


def test_a_folder_that_is_being_written_is_not_a_task(task_data: Path) -> None:
    """Nor one that a killed ``prepare_task_data.py`` has left."""
    before = local_tasks(task_data)
    with whole_folder(task_data / "boolq") as partial:
        assert partial.is_dir() and local_tasks(task_data) == before
    assert local_tasks(task_data) == tuple(sorted({*before, "boolq"}))


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_records_in_another_format_are_refused(case: str, task_data: Path, tmp_path: Path) -> None:
    record, message = BAD_RECORDS[case]
    put(task_data / "lambada_openai" / "test.jsonl", LAMBADA, record)
    found = _refused(task_data, tmp_path)
    assert message in found and found.endswith("reads text; tools/prepare_tasks.py writes it from published files")


def test_other_files_are_refused(task_data: Path, tmp_path: Path) -> None:
    path = task_data / "lambada_openai" / "test.jsonl"
    path.write_text('{"text": "one tw')
    assert f"{path}:1: expected a JSON object, found invalid JSON (Unterminated" in _refused(task_data, tmp_path)
    path.write_bytes(b'{"text": "one \xe9"}')
    assert "test.jsonl: expected UTF-8, found byte 0xe9" in _refused(task_data, tmp_path)
    path.write_text("\n")
    assert "test.jsonl: expected one JSON object a line, found nothing" in _refused(task_data, tmp_path)
    path.rename(path.with_name("validation.jsonl"))
    found = _refused(task_data, tmp_path)
    assert "lambada_openai lacks test.jsonl, the split that lambada_openai is scored on; found validation" in found


def test_other_folders_are_refused(task_data: Path, tmp_path: Path) -> None:
    put(task_data / "lambada_opnai" / "test.jsonl", LAMBADA)
    assert_names(_refused(task_data, tmp_path), task_data / "lambada_opnai", "lambada_openai")
    empty = tmp_path / "empty"
    put(empty / "test.jsonl", LAMBADA)
    assert "expected DIR/<task>/<split>.jsonl, found test.jsonl" in _refused(empty, tmp_path)
    put(tmp_path / "program" / "scrolls_quality" / "test.jsonl", LAMBADA)
    folder = tmp_path / "program" / "scrolls_quality"
    assert_names(_refused(tmp_path / "program", tmp_path), "--task-data", folder)
