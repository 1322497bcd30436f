"""The README of task data: its table agrees with the code, and its commands parse."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_TASKS
from megatron.ltd.evaluation.local_tasks.catalog import read_splits, task_file
from megatron.ltd.evaluation.local_tasks.prepare import PrepareConfig
from megatron.ltd.evaluation.local_tasks.raw_tasks import RAW_TASKS
from megatron.ltd.flags import FlagParser, add_flags, read_flags

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def card(repository: Path) -> list[str]:
    path = repository / "megatron" / "ltd" / "evaluation" / "local_tasks" / "README.md"
    return path.read_text(encoding="utf-8").splitlines()


def test_table_of_published_files(card: list[str]) -> None:
    rows = []
    for task, raw_task in RAW_TASKS.items():
        path = task_file(task)
        assert path is not None
        splits = read_splits(path)
        scored = "--test" if splits.test else "--validation"
        rows.append(f"| {task} | `{scored}` | {raw_task.published} | `{task}/{splits.scored}.jsonl` |")
    assert [line for line in card if line.startswith("| ") and "`--" in line] == rows
    assert list(RAW_TASKS) == [task.name for task in PAPER_TASKS]


def test_commands_are_read(card: list[str]) -> None:
    commands = [line.split()[2:] for line in card if line.startswith("python tools/prepare_tasks.py")]
    parser = FlagParser(None)
    add_flags(parser, PrepareConfig)
    configs = [read_flags(parser.parse_args(command), PrepareConfig) for command in commands]
    assert [config.task for config in configs] == ["hellaswag", "piqa", "arc_easy"]
