"""Names, files and splits of tasks, found without parsing all files, against lm-eval's own index."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_TASKS
from megatron.ltd.evaluation.local_tasks import catalog
from tests.support_errors import refused

pytest.importorskip("lm_eval")
FOLDERS = ("glue", "super_glue", "arc", "anli", "race", "truthfulqa", "paloma", "kbl/knowledge", "mmlu/default")
"""Groups, tags, tasks that include a template without a suffix, and tasks with several includes."""


def test_names_and_splits_are_those_of_lm_evals_index() -> None:
    from lm_eval.tasks._index import Kind, TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    index = TaskIndex.build([catalog.tasks_folder() / folder for folder in FOLDERS])
    assert len(index) > 120 and index.keys() <= catalog.installed_names()
    for name, entry in index.items():
        if entry.kind is not Kind.TASK:
            continue
        assert entry.yaml_path is not None
        assert catalog.task_file(name) == entry.yaml_path
        config = load_yaml(entry.yaml_path, resolve_func=False)
        splits = catalog.read_splits(entry.yaml_path)
        expected = [config.get(f"{split}_split") for split in ("training", "validation", "test", "fewshot")]
        assert list(dataclasses.astuple(splits)) == expected, name


@pytest.mark.parametrize("task", PAPER_TASKS, ids=lambda task: task.name)
def test_the_papers_tasks_are_found_without_reading_all_files(task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_installed", lambda: pytest.fail("read all files"))
    assert catalog.task_file(task.name) == catalog.tasks_folder() / task.file


def test_groups_and_tags_have_no_file() -> None:
    assert catalog.task_file("hellaswagg") is None
    assert catalog.task_file("ai2_arc") is None and "ai2_arc" in catalog.installed_names()  # a tag
    assert catalog.task_file("mmlu") is None and "mmlu" in catalog.installed_names()  # a group


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    catalog.tasks_folder.cache_clear()
    with refused("lm-eval", "megatron-ltd[eval]"):
        catalog.tasks_folder()
    catalog.tasks_folder.cache_clear()


def test_code_in_a_task_file_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all YAML tags only lm-eval's ``!function`` is understood, and it names code without calling it."""
    mark = tmp_path / "executed"
    hostile = f"task: mine\ntest_split: !!python/object/apply:os.mkdir ['{mark}']\n"
    (tmp_path / "mine.yaml").write_text(hostile)
    (tmp_path / "other.yaml").write_text("task: other\ntest_split: test\nprocess_docs: !function utils.process_docs\n")
    monkeypatch.setattr(catalog, "tasks_folder", lambda: tmp_path)
    catalog._installed.cache_clear()
    try:
        assert catalog.installed_names() == {"mine", "other"}
    finally:
        catalog._installed.cache_clear()
    assert catalog.read_splits(tmp_path / "mine.yaml").scored is None
    assert catalog.read_splits(tmp_path / "other.yaml").scored == "test"
    assert not mark.exists()
