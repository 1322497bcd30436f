"""Converts published files to task data, for ``tools/prepare_tasks.py``.

    --validation hellaswag_val.jsonl --read--> records --convert--> checked --> OUTPUT_DIR/hellaswag/validation.jsonl

``write_overlays`` reads these files. Every record is checked before anything is written, and the folder of the task is
created as a whole or not at all. ``source.json`` beside the data lists the published files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.evaluation.local_tasks.catalog import read_splits, task_file
from megatron.ltd.evaluation.local_tasks.raw_files import RawRecord, read_raw
from megatron.ltd.evaluation.local_tasks.raw_tasks import RAW_TASKS, RawTask
from megatron.ltd.evaluation.local_tasks.shapes import ShapeError, check_record
from megatron.ltd.flags import Settings, flag
from megatron.ltd.small_files import whole_folder


@dataclass(frozen=True)
class PrepareConfig(Settings):
    """task data"""

    task: str = flag(
        None, choices=tuple(RAW_TASKS), help="lm-eval's name of the task that the files belong to",
        required=f"give one of {', '.join(RAW_TASKS)}",
    )  # fmt: skip
    train: tuple[str, ...] = flag(
        (), metavar="FILE", help="published files of the split that few-shot examples come from"
    )
    validation: tuple[str, ...] = flag(
        (), metavar="FILE", help="published files of the validation split: .jsonl, .json, .tsv, .txt, .gz, .bz2 or .zip"
    )
    test: tuple[str, ...] = flag(
        (), metavar="FILE", help="published files of the test split; labels in a .lst file follow"
    )
    output_dir: str = flag(
        None, metavar="DIR", help="writes DIR/<task>/<split>.jsonl, for --task-data DIR",
        required="give the folder for the data of all tasks, such as task_data",
    )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """The written files."""

    task: str
    folder: Path
    num_records: dict[str, int]
    """By split, as the official task names it."""
    remarks: dict[str, int]
    """Remarks, each with the number of records that it applies to."""

    def summary(self) -> str:
        """A line about the task, and one for each remark."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.num_records.items())
        lines = [f"{self.folder}: {counts} records for {self.task}"]
        return "\n".join([*lines, *(f"note: {count:,} records {text}" for text, count in self.remarks.items())])


def prepare(config: PrepareConfig) -> Prepared:
    """Convert the files and write them.

    Raises ``UserError`` for files that cannot be read or have another format (file, line, expected, found), an unknown
    split, a missing split that is scored, and a folder of the task that exists.
    """
    folder = Path(config.output_dir) / config.task
    if os.path.lexists(folder):
        raise UserError(f"--output-dir {config.output_dir}: {folder} exists; give another folder, or move it away")
    raw_task = RAW_TASKS[config.task]
    given = {"train": config.train, "validation": config.validation, "test": config.test}
    names = _official_splits(config.task, given, raw_task)
    remarks: Counter[str] = Counter()
    records = {
        names[split]: _convert(config.task, raw_task, split, files, remarks) for split, files in given.items() if files
    }
    sources = {names[split]: [_source(Path(file)) for file in files] for split, files in given.items() if files}
    _write(folder, records, {"task": config.task, "splits": sources})
    counts = {split: len(items) for split, items in records.items()}
    return Prepared(config.task, folder, counts, dict(remarks))


def _official_splits(task: str, given: dict[str, tuple[str, ...]], raw_task: RawTask) -> dict[str, str]:
    """The task's own names of the given splits. Raises ``UserError`` for an unknown or a missing split."""
    installed = task_file(task)
    assert installed is not None, task
    splits = read_splits(installed)
    names = {"train": splits.training, "validation": splits.validation, "test": splits.test}
    scored = next(split for split, name in names.items() if name == splits.scored)
    for split, files in given.items():
        if files and names[split] is None:
            raise UserError(
                f"--{split} {files[0]}: lm-eval's {task} has no such split; give --{scored}, which it scores"
            )
    if not given[scored]:
        raise UserError(f"--{scored}: required; lm-eval scores {task} on it; give {raw_task.published}")
    return {split: name for split, name in names.items() if name is not None}


def _convert(
    task: str, raw_task: RawTask, split: str, files: Sequence[str], remarks: Counter[str]
) -> list[dict[str, Any]]:
    """The records of the task in ``files``; remarks about them are counted in ``remarks``."""
    records: list[dict[str, Any]] = []
    try:
        for raw in _records(raw_task, split, files):
            records += _convert_one(task, raw_task, raw, remarks)
        if not records:
            raise ShapeError(f"{' '.join(files)}: expected records, found none")
    except ShapeError as error:
        raise UserError(f"--{split}: {error}; {task} is read from {raw_task.published}") from None
    return records


def _convert_one(task: str, raw_task: RawTask, raw: RawRecord, remarks: Counter[str]) -> list[dict[str, Any]]:
    try:
        converted = raw_task.convert(raw.value)
        for record in converted:
            check_record(task, record)
    except ShapeError as error:
        raise ShapeError(f"{raw.place}: {error}") from None
    remark = raw_task.remark(raw.value)
    if remark is not None:
        remarks[remark] += len(converted)
    return converted


def _records(raw_task: RawTask, split: str, files: Sequence[str]) -> Iterator[RawRecord]:
    """The published records, with the labels of the .lst file that follows theirs."""
    for position, file in enumerate(files):
        path = Path(file)
        if path.suffix == ".lst":
            if position == 0 or raw_task.label_field is None:
                raise ShapeError(f"{file}: expected the file that the labels belong to before them, found none")
            continue
        texts = read_raw(path, raw_task.members.get(split, ()))
        records = [record for text in texts for record in raw_task.read(text)]
        labels = _labels(raw_task, split, path, [Path(after) for after in files[position + 1 : position + 2]])
        if labels is None:
            yield from records
            continue
        if len(labels) != len(records):
            raise ShapeError(f"{file}: expected a label a record, found {len(labels)} for {len(records)} records")
        for record, label in zip(records, labels, strict=True):
            value = {**record.value, raw_task.label_field: label} if isinstance(record.value, dict) else record.value
            yield RawRecord(record.place, value)


def _labels(raw_task: RawTask, split: str, path: Path, after: Sequence[Path]) -> list[str] | None:
    """The labels of the records in ``path``: from the .lst file after it, or from its archive; None without."""
    if raw_task.label_members is None:
        return None
    if after and after[0].suffix == ".lst":
        return read_raw(after[0], ())[0].text.split()
    if path.suffix == ".zip":
        return read_raw(path, raw_task.label_members.get(split, ()))[0].text.split()
    return None


def _source(path: Path) -> dict[str, Any]:
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return {"file": path.name, "bytes": sum(file.stat().st_size for file in files), "sha256": digest.hexdigest()}


def _write(folder: Path, records: dict[str, list[dict[str, Any]]], sources: dict[str, Any]) -> None:
    with writes_to(f"--output-dir {folder.parent}"), whole_folder(folder) as unfinished:
        for split, items in records.items():
            text = "".join(json.dumps(item) + "\n" for item in items)
            (unfinished / f"{split}.jsonl").write_text(text, encoding="utf-8")
        (unfinished / "source.json").write_text(json.dumps(sources, indent=2) + "\n", encoding="utf-8")
