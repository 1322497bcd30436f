"""The files of checkpoints, and which checkpoints are complete. No torch.

    <folder>/iter_0000100/                        a complete checkpoint: tensors, run.json, manifest.json
             iter_0000200.<random>.partial/       being written, or left by a run that was killed while writing
             latest_checkpointed_iteration.txt    the last complete one, written last

``run.json`` describes the run by stable ids: its progress, learning-rate schedule, identity (what must be equal in a
run that continues it) and flags (``run_format``).

A checkpoint is written under its ``.partial`` name, listed in its ``manifest.json`` (size and CRC-32 of every file),
renamed, and only then named in the tracker file. After a kill at any moment the tracker names a complete checkpoint;
later damage is found by the manifest. The random part of the name keeps the writers of a killed run out of the folder
of the next one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint.run_format import FORMAT_VERSION, from_format_1
from megatron.ltd.checkpoint.stored_sizes import run_problem, settings_problem
from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import LARGE_BYTES, check_regular, read_small

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
RUN = "run.json"
METADATA = ".metadata"
_RUN_PARTS = ("progress", "schedule", "identity", "order", "config")
_PARTIAL = ".partial"
_REPLACED = ".replaced"
_CHUNK_BYTES = 1 << 24
_TRACKER_BYTES = 64
_NAME = re.compile(r"iter_(\d{7}|[1-9]\d{7,17})", re.ASCII)


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """The folder of the complete checkpoint of ``iteration``."""
    return run_folder(folder) / f"iter_{iteration:07d}"


def run_folder(place: Path) -> Path:
    """The folder of checkpoints that ``place`` is, or of which it is one."""
    return place if named_iteration(place) is None else place.parent


def named_iteration(place: Path) -> int | None:
    """The iteration of the one checkpoint that ``place`` is; None for a folder of checkpoints."""
    name = _NAME.fullmatch(place.name)
    return int(name[1]) if name is not None and (place / RUN).is_file() else None


def place_of(folder: str, step: int | None) -> str:
    """The checkpoint of iteration ``step`` in ``folder``, or ``folder`` if that is None. Raises ``UserError``."""
    if step is None or named_iteration(Path(folder)) == step:
        return folder
    saved = saved_iterations(Path(folder))
    if step not in saved:
        there = f"has {', '.join(map(str, saved))}" if saved else "has no checkpoint"
        raise UserError(f"--ckpt-step {step}: --load {folder} {there}; give the step of a checkpoint")
    return str(checkpoint_path(Path(folder), step))


def saved_iterations(folder: Path) -> list[int]:
    """Iterations of the checkpoints in ``folder``, ascending, complete or damaged."""
    names = [_NAME.fullmatch(path.name) for path in folder.glob("iter_*") if path.is_dir()]
    return sorted(int(name[1]) for name in names if name is not None)


def read_tracker(folder: Path) -> int | None:
    """The iteration in the tracker file; None if there is none."""
    try:
        text = read_small(folder / TRACKER, _TRACKER_BYTES).decode("ascii").strip()
        return int(text) if text.isdecimal() else None
    except (OSError, ValueError):
        return None


def candidates(folder: Path) -> list[int]:
    """Iterations to try, best first: the tracker's and those before it, or all if the tracker's does not exist.

    Of a checkpoint's own folder only that one.
    """
    named = named_iteration(folder)
    if named is not None:
        return [named]
    saved, latest = saved_iterations(folder)[::-1], read_tracker(folder)
    return saved[saved.index(latest) :] if latest in saved else saved


def how_to_continue(save: str | None) -> str:
    """How to continue a run that ended too early; ``save`` is its ``--save``, if any."""
    if save is None:
        return "nothing was saved without --save: start again"
    latest = read_tracker(Path(save))
    if latest is None:
        return f"nothing was saved in {save} yet: start again"
    return f"the last complete checkpoint is {checkpoint_path(Path(save), latest)}: continue with --load {save}"


def tracker_problem(folder: Path) -> str | None:
    """How the tracker file and the checkpoints in ``folder`` contradict each other, or None."""
    if named_iteration(folder) is not None:
        return None
    tracker, saved, latest = folder / TRACKER, saved_iterations(folder), read_tracker(folder)
    if not tracker.exists():
        return f"{tracker} is missing" if saved else None
    if latest is None:
        return f"{tracker} does not contain an iteration"
    return None if latest in saved else f"{tracker} names iteration {latest}, which does not exist"


def _crc32(path: Path) -> int:
    value = 0
    check_regular(path)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Size [bytes] and CRC-32 of files in ``folder``."""
    return {name: {"bytes": (folder / name).stat().st_size, "crc32": _crc32(folder / name)} for name in names}


def written_checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Flush files that this process has just written to disk, and return their ``checksums``."""
    names = list(names)
    for name in names:
        _flush(folder / name)
    return checksums(folder, names)


def file_names(folder: Path) -> list[str]:
    """Files of a checkpoint except its manifest, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)


def write_manifest(folder: Path, files: dict[str, dict[str, int]]) -> None:
    """Write the list of the files of a finished checkpoint."""
    _write_durably(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def read_manifest(folder: Path) -> dict[str, dict[str, int]] | None:
    """The files that the checkpoint in ``folder`` should have; None without a readable manifest."""
    try:
        files = parse_json(read_small(folder / MANIFEST, LARGE_BYTES))["files"]
        listed = {name: {"bytes": int(entry["bytes"]), "crc32": int(entry["crc32"])} for name, entry in files.items()}
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None
    is_whole = {METADATA, RUN} <= listed.keys() and all(Path(name).name == name for name in listed)
    return listed if is_whole else None


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the description of the run into the checkpoint at ``folder``."""
    (folder / RUN).write_text(json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1))


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write_run`` of this or an older version wrote. Raises ``UserError`` if it cannot be read."""
    try:
        record = parse_json(read_small(folder / RUN))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RUN} cannot be read ({error}): restore the checkpoint from a copy") from None
    missing = [part for part in _RUN_PARTS if not isinstance(record, dict) or not isinstance(record.get(part), dict)]
    if missing:
        raise UserError(f"{folder / RUN} has no {missing[0]}: load a checkpoint that this program wrote")
    version = record.get("format_version", 1)
    if type(version) is not int:
        raise UserError(f"{folder / RUN}: format_version must be an integer; restore the checkpoint from a copy")
    if version == 1:
        try:
            return from_format_1(record)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise UserError(
                f"{folder / RUN} has invalid settings for format_version 1: load a checkpoint that this program wrote"
            ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / RUN} has format_version {version}, but this version reads up to {FORMAT_VERSION}: use the "
            "version of megatron-ltd that wrote it, or a newer one"
        )
    return record


def read_run_to_use(folder: Path) -> dict[str, Any]:
    """``read_run`` of a checkpoint whose tensors will be loaded. Raises ``UserError`` if the two do not match."""
    record = read_run(folder)
    _refuse(folder, run_problem(folder, record))
    return record


def _refuse(folder: Path, problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"{folder / RUN} cannot be used: {problem}; load a checkpoint that this program wrote")


def stored_config(folder: Path) -> dict[str, Any]:
    """The flags of the run of the newest checkpoint in ``folder``. Raises ``UserError`` if there is no checkpoint."""
    for path in (checkpoint_path(folder, iteration) for iteration in candidates(folder)):
        listed = read_manifest(path)
        if listed is not None and _file_damage(path, RUN, listed[RUN]) is None:
            config = read_run(path)["config"]
            _refuse(path, settings_problem(path, config))
            return config
    raise UserError(f"--load {folder}: has no checkpoint for --use-checkpoint-args; use a folder with one")


def find_damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with the checkpoint in ``folder``, or None; each of several processes can check a share of it."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or not readable: the checkpoint is incomplete, or another program wrote it"
    damages = (_file_damage(folder, name, manifest[name]) for name in sorted(manifest)[share::shares])
    return next((damage for damage in damages if damage is not None), None)


def _file_damage(folder: Path, name: str, listed: Mapping[str, int]) -> str | None:
    try:
        size = (folder / name).stat().st_size
        if size != listed["bytes"]:
            return f"{name} has {size} bytes instead of {listed['bytes']}"
        return None if _crc32(folder / name) == listed["crc32"] else f"{name} has changed since it was written"
    except OSError as error:
        return f"{name}: {error.strerror}"


def start_partial(folder: Path, iteration: int) -> Path:
    """A new folder in which to write the checkpoint of ``iteration``, with a random name."""
    partial = folder / f"iter_{iteration:07d}.{secrets.token_hex(4)}{_PARTIAL}"
    partial.mkdir(parents=True)
    return partial


def remove_partial(partial: Path) -> None:
    """Remove the files of a checkpoint that failed, as far as possible, to free a full disk."""
    shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, iteration: int) -> Path:
    """Rename a finished checkpoint, then write its iteration to the tracker file."""
    folder = partial.parent
    final, replaced = checkpoint_path(folder, iteration), folder / f"iter_{iteration:07d}{_REPLACED}"
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(final, replaced)
    os.rename(partial, final)
    _flush(folder)
    _write_durably(folder / TRACKER, str(iteration))
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def remove_old(folder: Path, keep_last: int | None) -> list[str]:
    """Remove leftovers of killed runs and, with ``keep_last``, all but the newest checkpoints up to the tracker's.

    Returns a line about each old checkpoint that could not be removed. Leftovers are tried again after the next save,
    because the writer of a killed run may still be active.
    """
    for leftover in [*folder.glob(f"iter_*{_PARTIAL}"), *folder.glob(f"iter_*{_REPLACED}")]:
        shutil.rmtree(leftover, ignore_errors=True)
    complaints = []
    for iteration in [] if keep_last is None else candidates(folder)[keep_last:]:
        path = checkpoint_path(folder, iteration)
        try:
            shutil.rmtree(path)
        except OSError as error:
            complaints.append(f"{path}: --keep-last {keep_last} cannot remove it ({error.strerror})")
    return complaints


def _write_durably(path: Path, text: str) -> None:
    """Replace ``path`` atomically; it is on disk when this returns."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _flush(path: Path) -> None:
    """Wait until the content of ``path``, a file or a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
