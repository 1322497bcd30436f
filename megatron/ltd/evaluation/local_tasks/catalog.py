"""The tasks of the installed lm-eval: their names, and the file that describes each.

lm-eval's own index takes 15 s, because it parses all of its 14,000 files. Here a task of the paper is found by its
known place, and other names by parsing the few lines of each file that hold names.

Not here: what a task means. lm-eval reads that, except for the splits, which decide what data a task needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_TASKS_BY_NAME

_NAMES = ("task", "group", "tag")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain YAML. lm-eval's ``!function``, which names Python code, reads as None; other tags are errors."""


_Loader.add_constructor("!function", lambda loader, node: None)


@dataclass(frozen=True)
class TaskSplits:
    """Which splits of its data a task reads; None if it has none."""

    training: str | None
    validation: str | None
    test: str | None
    fewshot: str | None
    """Where few-shot examples come from, if the task names a split for them."""

    @property
    def scored(self) -> str | None:
        """The split that lm-eval scores: test if there is one, else validation; None for a task that is a program."""
        return self.test or self.validation


@cache
def tasks_folder() -> Path:
    """The folder of the installed lm-eval's tasks. Raises ``UserError`` if it is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('the package lm-eval is not installed: run pip install "megatron-ltd[eval]"')
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def task_file(name: str) -> Path | None:
    """The file that describes the task ``name``; None if lm-eval has no such task, or the name is a group's."""
    known = PAPER_TASKS_BY_NAME.get(name)
    if known is not None:
        path = tasks_folder() / known.file
        if path.is_file() and _read(path).get("task") == name:
            return path
    return _installed()[0].get(name)


def installed_names() -> frozenset[str]:
    """The names that lm-eval accepts: tasks, groups and tags."""
    tasks, others = _installed()
    return others | tasks.keys()


def read_splits(path: Path) -> TaskSplits:
    """The splits of the task that ``path`` describes, with those of the files that it includes."""
    content = _read_whole(path)
    return TaskSplits(*(content.get(f"{name}_split") for name in ("training", "validation", "test", "fewshot")))


@cache
def _installed() -> tuple[dict[str, Path], frozenset[str]]:
    """Tasks with their files; names of groups and tags."""
    tasks: dict[str, Path] = {}
    others: set[str] = set()
    for path in sorted(tasks_folder().rglob("*")):
        if path.suffix and "yaml" not in path.name or not path.is_file():  # many templates have no suffix
            continue
        names = _parse("".join(_lines_with_names(path)))
        others.update(_as_list(names.get("tag")))
        if path.suffix == ".yaml":  # the name in a template is not a task
            others.update(_as_list(names.get("group")))
            if isinstance(names.get("task"), str):
                tasks.setdefault(names["task"], path)
    return tasks, frozenset(others - tasks.keys())


def _lines_with_names(path: Path) -> Iterator[str]:
    """The lines of the keys ``_NAMES`` at the top level, and of their values."""
    is_wanted = False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if not line.startswith((" ", "\t", "-", "#", "\n")):
            is_wanted = line.partition(":")[0].strip("\"' ") in _NAMES
        if is_wanted:
            yield line


def _read_whole(path: Path) -> dict[str, Any]:
    """A task's file over the files that it includes."""
    content = _read(path)
    included = [_read_whole(path.parent / file) for file in _as_list(content.get("include"))]
    return {key: value for part in (*included, content) for key, value in part.items()}


def _read(path: Path) -> dict[str, Any]:
    return _parse(path.read_text(encoding="utf-8"))


def _parse(text: str) -> dict[str, Any]:
    """The mapping in a YAML text; empty for anything else."""
    try:
        content = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _as_list(value: Any) -> list[str]:
    """The texts of a value that is one, or a list of them."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
