"""The tasks of the installed lm-eval: their names, and the file that describes each.

lm-eval's own index takes 15 s, for it parses all of its 14,000 files. A task of the paper is found here by its known
place, and every other name by reading those files as text (one to two seconds), nothing being imported.

Not here: what a task means. That is read by lm-eval, but for the splits, which decide what data a task needs.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_TASKS_BY_NAME

_NAME = re.compile(r"""^["']?(task|group)["']?:[ \t]*["']?([^\s"'#\[]+)""", re.MULTILINE)
_SPLIT = re.compile(r"""^["']?(training|validation|test|fewshot)_split["']?:[ \t]*["']?([^\s"'#,]*)""", re.MULTILINE)
_INCLUDE = re.compile(
    r"""^["']?include["']?:[ \t]*(?P<inline>\S.*)?\n(?P<listed>(?:[ \t]*-[ \t]+\S.*\n)*)""", re.MULTILINE
)
_TAGS = re.compile(r"""^["']?tag["']?:[ \t]*(?P<inline>\S.*)?\n(?P<listed>(?:[ \t]*-[ \t]+\S.*\n)*)""", re.MULTILINE)


@dataclass(frozen=True)
class TaskSplits:
    """Which splits of its data a task reads; None where it has none."""

    train: str | None
    validation: str | None
    test: str | None
    fewshot: str | None
    """Where examples come from, if the task names a split for them."""

    @property
    def scored(self) -> str | None:
        """The one that lm-eval scores: test where there is one, else validation; None of a task that is a program."""
        return self.test or self.validation


@cache
def tasks_folder() -> Path:
    """The folder of the installed lm-eval's tasks. Raises ``UserError`` where it is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('lm-eval is not installed: evaluation needs it; pip install "megatron-ltd[eval]"')
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def task_file(name: str) -> Path | None:
    """The file that describes the task ``name``; None where lm-eval has no such task, or the name is a group's."""
    known = PAPER_TASKS_BY_NAME.get(name)
    if known is not None:
        path = tasks_folder() / known.file
        if path.is_file() and ("task", name) in _NAME.findall(path.read_text(encoding="utf-8")):
            return path
    return _installed()[0].get(name)


def installed_names() -> frozenset[str]:
    """Everything that may be asked for: tasks, groups and tags."""
    tasks, others = _installed()
    return others | tasks.keys()


def read_splits(path: Path) -> TaskSplits:
    """The splits of the task that ``path`` describes, those of the files it includes among them."""
    splits = _splits(path)
    return TaskSplits(*(splits.get(name) for name in ("training", "validation", "test", "fewshot")))


@cache
def _installed() -> tuple[dict[str, Path], frozenset[str]]:
    """Tasks with their files; names of groups and tags."""
    tasks: dict[str, Path] = {}
    others: set[str] = set()
    for path in sorted(tasks_folder().rglob("*")):
        if path.suffix and "yaml" not in path.name or not path.is_file():  # templates often end in nothing
            continue
        text = path.read_text(encoding="utf-8", errors="replace") + "\n"
        for match in _TAGS.finditer(text):
            others.update(_values(match))
        if path.suffix == ".yaml":  # a template's own name is none
            for kind, name in _NAME.findall(text):
                if kind == "group":
                    others.add(name)
                else:
                    tasks.setdefault(name, path)
    return tasks, frozenset(others - tasks.keys())


def _splits(path: Path) -> dict[str, str | None]:
    """What a task's file says of splits, after the files that it includes."""
    text = path.read_text(encoding="utf-8") + "\n"
    splits: dict[str, str | None] = {}
    for match in _INCLUDE.finditer(text):
        for included in _values(match):
            splits.update(_splits(path.parent / included))
    splits.update(
        (split, None if name in ("", "null", "~", "!!null") else name) for split, name in _SPLIT.findall(text)
    )
    return splits


def _values(match: re.Match[str]) -> list[str]:
    """The values of a key with one, or with a list of them."""
    inline = (match["inline"] or "").partition(" #")[0].strip("[] \t").split(",")
    listed = [line.strip().removeprefix("-") for line in match["listed"].splitlines()]
    return [value for value in (value.strip(" \t\"'") for value in (*inline, *listed)) if value]
