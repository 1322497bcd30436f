"""lm-eval's official tasks on local files: an overlay file a task, and the paper's group.

    DIR/<task>/<split>.jsonl      <task>: a name of lm-eval's.  <split>: a name that the official task reads
    target/<task>.yaml            include: the installed task's file; data: those local files; nothing else changes

Prompt, target and metric stay the official ones, and so does the split that is scored: it must be there, the
others may be absent. Without ``train`` lm-eval takes few-shot examples from the split it scores; zero-shot needs none.
``target`` is what lm-eval calls ``--include_path``.

Not here: raw files in other shapes (``prepare``), and loading the tasks, which lm-eval does.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import glob
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron.ltd.errors import UserError
from megatron.ltd.evaluation.lm_eval.paper_tasks import PAPER_GROUP, PAPER_TASKS, PAPER_TASKS_BY_NAME
from megatron.ltd.evaluation.local_tasks.catalog import installed_names, read_splits, task_file
from megatron.ltd.evaluation.local_tasks.shapes import SHAPES, ShapeError, check_record
from megatron.ltd.evaluation.local_tasks.squad_metrics import stand_in_for_squad_metrics
from megatron.ltd.json_text import parse_json

LAYOUT = "DIR/<task>/<split>.jsonl"
_PREPARE = "tools/prepare_tasks.py writes it from published files"


@contextlib.contextmanager
def task_folder(names: Sequence[str], task_data: Path | None = None) -> Iterator[Path]:
    """All that ``names`` need beside lm-eval's own task files, in a temporary folder for its ``--include_path``.

    With ``task_data`` its overlays, which then are all that lm-eval needs to read (``include_defaults=False``), else
    the paper's group. Where ReCoRD may be asked for, its metrics are seen to. Raises ``UserError``: see ``check_tasks``
    and ``write_overlays``.
    """
    check_tasks(names, task_data)
    if any(name in (PAPER_GROUP, "record") or _is_pattern(name) for name in names):
        stand_in_for_squad_metrics()
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        if task_data is None:
            write_paper_group(Path(folder))
        else:
            write_overlays(task_data, Path(folder))
        yield Path(folder)


def write_overlays(task_data: Path, target: Path) -> tuple[str, ...]:
    """Write an overlay for every task with data in ``task_data`` into ``target``, and the group where it is complete.

    Returns the tasks' names, sorted. Raises ``UserError`` for a folder without tasks, a task that lm-eval has not, a
    scored split that is missing, and a record in another shape: file, line, what was expected and what was found.
    """
    tasks = local_tasks(task_data)
    overlays = {name: _overlay(name, task_data / name) for name in tasks}
    for name, overlay in overlays.items():
        _write(target, name, overlay)
    if PAPER_TASKS_BY_NAME.keys() <= set(tasks):
        write_paper_group(target)
    return tasks


def write_paper_group(target: Path) -> None:
    """Write the group of the paper's tasks into ``target``, for lm-eval's ``--include_path``.

    The group has no score of its own: lm-eval averages metrics of one name, and the paper's average is over metrics of
    several (``paper_tasks``). ``tools/compare_runs.py`` computes it.
    """
    tasks = [task.name for task in PAPER_TASKS]
    _write(target, PAPER_GROUP, {"group": PAPER_GROUP, "task": tasks, "metadata": {"version": 1.0}})


def _write(target: Path, name: str, content: Mapping[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def local_tasks(task_data: Path) -> tuple[str, ...]:
    """The tasks that have a folder in ``task_data``, sorted. Raises ``UserError`` where there is none."""
    if not task_data.is_dir():
        raise UserError(f"--task-data {task_data}: no such folder; give one that holds {LAYOUT}; {_PREPARE}")
    folders = [entry for entry in task_data.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        found = ", ".join(sorted(entry.name for entry in task_data.iterdir())[:3]) or "nothing"
        raise UserError(f"--task-data {task_data}: expected {LAYOUT}, found {found}; {_PREPARE}")
    return tuple(sorted(folder.name for folder in folders))


def check_tasks(names: Sequence[str], task_data: Path | None = None) -> None:
    """Refuse names that lm-eval has no task, group or tag of, and with ``task_data`` those without local data.

    A pattern such as ``arc_*`` must fit one, and the name of a file be there. Raises ``UserError`` with the closest
    names, or with the data that is missing and where it was looked for.
    """
    for name in filter(_is_pattern, names):
        _check_pattern(name, task_data)
    names = [name for name in names if not _is_pattern(name)]
    for name in names:
        if name != PAPER_GROUP and name not in PAPER_TASKS_BY_NAME and name not in installed_names():
            raise UserError(f"--tasks {name}: lm-eval has no such task; {_closest(name)}")
    if task_data is None:
        return
    present = set(local_tasks(task_data))
    paper = [task.name for task in PAPER_TASKS] if PAPER_GROUP in names else []
    missing = [name for name in (*names, *paper) if name != PAPER_GROUP and name not in present]
    if missing:
        raise UserError(
            f"--tasks {' '.join(names)}: no data for {', '.join(dict.fromkeys(missing))} in --task-data {task_data} "
            f"(expected {LAYOUT}); {_PREPARE}, or name only tasks that are there: {', '.join(sorted(present))}"
        )


def _is_pattern(name: str) -> bool:
    return bool(set(name) & set("*?[")) or name.endswith((".yaml", ".yml"))


def _check_pattern(name: str, task_data: Path | None) -> None:
    """Raises ``UserError`` for a file's name or a pattern behind which there is nothing."""
    if name.endswith((".yaml", ".yml")):
        if not glob.glob(name):
            raise UserError(f"--tasks {name}: there is no such file; name a task, or a task's file")
        return
    known = installed_names() if task_data is None else local_tasks(task_data)
    if not fnmatch.filter([PAPER_GROUP, *known], name):
        where = "lm-eval has no task" if task_data is None else f"--task-data {task_data} holds no task"
        raise UserError(f"--tasks {name}: {where} whose name fits; quote the pattern, or name the tasks")


def _closest(name: str) -> str:
    alike = difflib.get_close_matches(name, [PAPER_GROUP, *sorted(installed_names())], n=3, cutoff=0.6)
    return f"the closest are {', '.join(alike)}" if alike else "lm-eval ls tasks lists them"


def _overlay(name: str, folder: Path) -> dict[str, Any]:
    """The overlay of the task ``name`` over its files in ``folder``."""
    installed = task_file(name)
    if installed is None:
        raise UserError(
            f"--task-data: {folder} is named like no task of lm-eval's; {_closest(name)}; rename the folder, or move it"
        )
    splits = read_splits(installed)
    if splits.scored is None:
        raise UserError(f"--task-data: {folder}: {name} finds its data by a program of its own; move the folder away")
    named = {
        "training": splits.train,
        "validation": splits.validation,
        "test": splits.test,
        "fewshot": splits.fewshot,
    }
    files = {split: folder / f"{split}.jsonl" for split in named.values() if split}
    present = {split: path for split, path in files.items() if path.is_file()}
    if splits.scored not in present:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise UserError(
            f"--task-data: {folder} lacks {splits.scored}.jsonl, the split that {name} is scored on; found {found}; "
            f"{_PREPARE}"
        )
    for path in present.values():
        _check_file(name, path)
    data_files = {split: str(path.resolve()) for split, path in present.items()}
    absent = {f"{role}_split": None for role, split in named.items() if split and split not in present}
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data_files}}
    return {"include": str(installed), "task": name, **source, **absent}


def _check_file(name: str, path: Path) -> None:
    num_records = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    _check_line(name, path, number, line)
                    num_records += 1
    except UnicodeDecodeError as error:
        raise UserError(f"--task-data: {path}: expected UTF-8, found byte 0x{error.object[error.start]:02x}") from None
    if num_records == 0:
        raise UserError(f"--task-data: {path}: expected one JSON object a line, found nothing; {_PREPARE}")


def _check_line(name: str, path: Path, number: int, line: str) -> None:
    try:
        try:
            record = parse_json(line)
        except json.JSONDecodeError as error:
            raise ShapeError(f"expected a JSON object, found what is no JSON ({error.msg})") from None
        if not isinstance(record, dict):
            raise ShapeError(f"expected a JSON object, found a {type(record).__name__}")
        check_record(name, record)
    except ShapeError as error:
        fields = ", ".join(SHAPES.get(name, {})) or "JSON objects"
        raise UserError(f"--task-data: {path}:{number}: {error}; {name} reads {fields}; {_PREPARE}") from None
