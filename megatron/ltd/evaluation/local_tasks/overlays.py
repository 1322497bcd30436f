"""lm-eval's official tasks on local files: one overlay file per task, and the group of the paper's tasks.

    DIR/<task>/<split>.jsonl      <task>: its name in lm-eval.  <split>: a split that the official task reads
    target/<task>.yaml            includes the file of the installed task and replaces its data, and nothing else

Prompt, target and metric are the official ones, and so is the split that is scored, which must exist; other splits may
be absent. Without ``train`` lm-eval takes few-shot examples from the split that it scores; zero-shot needs none.
``target`` is for lm-eval's ``--include_path``.

Not here: published files in other formats (``prepare``), and loading the tasks, which lm-eval does.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
    """A temporary folder for lm-eval's ``--include_path``, with what ``names`` need beside lm-eval's own task files.

    With ``task_data`` it has the overlays, and lm-eval needs no other files (``include_defaults=False``); else it has
    the group of the paper's tasks. ReCoRD's metrics are provided if a name may stand for it. Raises ``UserError``: see
    ``check_tasks`` and ``write_overlays``.
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
    """Write an overlay for every task in ``task_data`` into ``target``, and the group if all of its tasks are there.

    Returns the names of the tasks, sorted. Raises ``UserError`` for a folder without tasks, an unknown task, a missing
    split that is scored, and a record of another format, with file, line and what was expected.
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

    The group has no score: lm-eval averages one metric, and the paper's average is over different metrics
    (``paper_tasks``). ``tools/compare_runs.py`` computes it.
    """
    tasks = [task.name for task in PAPER_TASKS]
    _write(target, PAPER_GROUP, {"group": PAPER_GROUP, "task": tasks, "metadata": {"version": 1.0}})


def _write(target: Path, name: str, content: Mapping[str, Any]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def local_tasks(task_data: Path) -> tuple[str, ...]:
    """The tasks that have a folder in ``task_data``, sorted. Raises ``UserError`` if there is none."""
    if not task_data.is_dir():
        raise UserError(f"--task-data {task_data}: does not exist; give a folder with {LAYOUT}; {_PREPARE}")
    folders = [entry for entry in task_data.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if not folders:
        found = ", ".join(sorted(entry.name for entry in task_data.iterdir())[:3]) or "nothing"
        raise UserError(f"--task-data {task_data}: expected {LAYOUT}, found {found}; {_PREPARE}")
    return tuple(sorted(folder.name for folder in folders))


def check_tasks(names: Sequence[str], task_data: Path | None = None) -> None:
    """Refuse names of no task, group or tag of lm-eval, and with ``task_data`` names without local data.

    A pattern such as ``arc_*`` must match a name, and a file must exist. Raises ``UserError`` with the closest names,
    or with the data that is missing and its place.
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
            f"(expected {LAYOUT}); {_PREPARE}, or give only tasks that are there: {', '.join(sorted(present))}"
        )


def _is_pattern(name: str) -> bool:
    return bool(set(name) & set("*?[")) or name.endswith((".yaml", ".yml"))


def _check_pattern(name: str, task_data: Path | None) -> None:
    """Raises ``UserError`` for a file that does not exist, or a pattern that matches no name."""
    if name.endswith((".yaml", ".yml")):
        if not glob.glob(name):
            raise UserError(f"--tasks {name}: there is no such file; give a task, or the file of one")
        return
    known = installed_names() if task_data is None else local_tasks(task_data)
    if not fnmatch.filter([PAPER_GROUP, *known], name):
        where = "lm-eval" if task_data is None else f"--task-data {task_data}"
        raise UserError(f"--tasks {name}: matches no task of {where}; quote the pattern, or give the tasks by name")


def _closest(name: str) -> str:
    alike = difflib.get_close_matches(name, [PAPER_GROUP, *sorted(installed_names())], n=3, cutoff=0.6)
    return f"the closest are {', '.join(alike)}" if alike else "lm-eval ls tasks lists them"


def _overlay(name: str, folder: Path) -> dict[str, Any]:
    """The overlay of the task ``name`` over its files in ``folder``."""
    installed = task_file(name)
    if installed is None:
        raise UserError(
            f"--task-data: {folder} has the name of no task of lm-eval; {_closest(name)}; rename the folder, or move it"
        )
    splits = read_splits(installed)
    if splits.scored is None:
        raise UserError(f"--task-data: {folder}: {name} loads its data with its own code; move the folder away")
    named = dataclasses.asdict(splits)
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
            raise ShapeError(f"expected a JSON object, found invalid JSON ({error.msg})") from None
        if not isinstance(record, dict):
            raise ShapeError(f"expected a JSON object, found a {type(record).__name__}")
        check_record(name, record)
    except ShapeError as error:
        fields = ", ".join(SHAPES.get(name, {})) or "JSON objects"
        raise UserError(f"--task-data: {path}:{number}: {error}; {name} reads {fields}; {_PREPARE}") from None
