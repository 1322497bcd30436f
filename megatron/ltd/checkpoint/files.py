"""Where checkpoints lie and which of them are whole. No torch.

    <folder>/iter_0000100/                        a whole checkpoint: tensors, run.json, manifest.json
             iter_0000200.<random>.partial/       being written, or left by a run that was killed while writing
             latest_checkpointed_iteration.txt    the last whole one, written last

``run.json`` says by stable ids what the run was: its progress, learning-rate schedule, identity (what a continuing run
must agree on) and flags (``run_format``).

A checkpoint is written under its ``.partial`` name, listed in its ``manifest.json`` (size and CRC-32 of every file),
renamed, and only then named by the tracker. A kill at any moment leaves the tracker pointing at a whole checkpoint;
what was damaged later is recognised by its manifest. The random part keeps what a killed run's writers may still do out
of the folder of the run that follows.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.checkpoint.run_format import FORMAT_VERSION, from_format_1
from megatron.ltd.checkpoint.stored_sizes import complaint_about_run, complaint_about_settings
from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
RUN = "run.json"
METADATA = ".metadata"
_RUN_PARTS = ("progress", "schedule", "identity", "order", "config")
_PARTIAL = ".partial"
_REPLACED = ".replaced"
_CHUNK_BYTES = 1 << 24


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of ``iteration`` lies when it is whole."""
    return folder / f"iter_{iteration:07d}"


def saved_iterations(folder: Path) -> list[int]:
    """Iterations of the checkpoints in ``folder``, ascending, whole or damaged."""
    names = (path.name for path in folder.glob("iter_*") if path.is_dir())
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def read_tracker(folder: Path) -> int | None:
    """The iteration that the tracker names; None without a tracker or where it holds no number."""
    try:
        return int((folder / TRACKER).read_text().strip())
    except (OSError, ValueError):
        return None


def candidates(folder: Path) -> list[int]:
    """Iterations to try, best first: the tracker's, then those before it; where it names none that exists, all."""
    saved, latest = saved_iterations(folder)[::-1], read_tracker(folder)
    return saved[saved.index(latest) :] if latest in saved else saved


def how_to_continue(save: str | None) -> str:
    """The advice to a run that has ended too early; ``save`` is the folder that it saves in, if any."""
    if save is None:
        return "nothing was saved, as there is no --save: start again"
    latest = read_tracker(Path(save))
    if latest is None:
        return f"nothing was saved in {save} yet: start again"
    return f"the last whole checkpoint is {checkpoint_path(Path(save), latest)}: continue with --load {save}"


def tracker_complaint(folder: Path) -> str | None:
    """How the tracker and the checkpoints in ``folder`` disagree, or None."""
    tracker, saved, latest = folder / TRACKER, saved_iterations(folder), read_tracker(folder)
    if not tracker.exists():
        return f"{tracker} is missing" if saved else None
    if latest is None:
        return f"{tracker} holds no iteration"
    return None if latest in saved else f"{tracker} names iteration {latest}, which is not there"


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Size [bytes] and CRC-32 of files in ``folder``."""
    return {name: {"bytes": (folder / name).stat().st_size, "crc32": _crc32(folder / name)} for name in names}


def written_checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """``checksums`` of files that this process has just written, once they are on disk."""
    names = list(names)
    for name in names:
        _flush(folder / name)
    return checksums(folder, names)


def file_names(folder: Path) -> list[str]:
    """Files of a checkpoint, sorted, its manifest left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)


def write_manifest(folder: Path, files: dict[str, dict[str, int]]) -> None:
    """List the files of a finished checkpoint."""
    _write_durably(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def read_manifest(folder: Path) -> dict[str, dict[str, int]] | None:
    """The files that the checkpoint in ``folder`` should hold; None without a readable manifest."""
    try:
        files = parse_json((folder / MANIFEST).read_text())["files"]
        listed = {name: {"bytes": int(entry["bytes"]), "crc32": int(entry["crc32"])} for name, entry in files.items()}
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None
    return listed if {METADATA, RUN} <= listed.keys() else None


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Describe the run in the checkpoint at ``folder``."""
    (folder / RUN).write_text(json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1))


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write_run`` wrote, this version's or an older one's. Raises ``UserError`` if it cannot be read."""
    try:
        record = parse_json((folder / RUN).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RUN} cannot be read ({error}): restore the checkpoint from a copy") from None
    missing = [part for part in _RUN_PARTS if not isinstance(record, dict) or not isinstance(record.get(part), dict)]
    if missing:
        raise UserError(f"{folder / RUN} says nothing of {missing[0]}: load a checkpoint that this program wrote")
    version = record.get("format_version", 1)
    if type(version) is not int:
        raise UserError(f"{folder / RUN} has a format_version that is no number: restore the checkpoint from a copy")
    if version == 1:
        try:
            return from_format_1(record)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise UserError(
                f"{folder / RUN} holds settings of format_version 1 that are none: load a checkpoint that this program "
                "wrote"
            ) from None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder / RUN} has format_version {version}, and this version reads up to {FORMAT_VERSION}: use the "
            "version of megatron-ltd that wrote it, or a newer one"
        )
    return record


def read_run_to_use(folder: Path) -> dict[str, Any]:
    """``read_run`` of a checkpoint whose tensors are to be loaded. Raises ``UserError`` if the two do not fit."""
    record = read_run(folder)
    _refuse(folder, complaint_about_run(folder, record))
    return record


def _refuse(folder: Path, complaint: str | None) -> None:
    if complaint is not None:
        raise UserError(f"{folder / RUN} cannot be used: {complaint}; load a checkpoint that this program wrote")


def stored_config(folder: Path) -> dict[str, Any]:
    """The flags of the run that saved the newest checkpoint in ``folder``. Raises ``UserError`` if there is none."""
    for path in (checkpoint_path(folder, iteration) for iteration in candidates(folder)):
        listed = read_manifest(path)
        if listed is not None and _file_damage(path, RUN, listed[RUN]) is None:
            config = read_run(path)["config"]
            _refuse(path, complaint_about_settings(path, config))
            return config
    raise UserError(f"--load {folder} holds no checkpoint to take --use-checkpoint-args from: name a folder that does")


def find_damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with the checkpoint in ``folder``, or None; of several processes each can check every n-th file."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or not readable, so the checkpoint is half copied or not of this program"
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
    """An empty folder to write the checkpoint of ``iteration`` in, with a name that no other run knows."""
    partial = folder / f"iter_{iteration:07d}.{secrets.token_hex(4)}{_PARTIAL}"
    partial.mkdir(parents=True)
    return partial


def remove_partial(partial: Path) -> None:
    """Remove what was written of a checkpoint that failed, as far as that goes: a full disk wants its space back."""
    shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, iteration: int) -> Path:
    """Give a finished checkpoint its name, then its place in the tracker."""
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

    Returns a line about each old checkpoint that could not be removed. Leftovers are tried again after the next save: a
    killed run's writer may still hold one.
    """
    for leftover in [*folder.glob(f"iter_*{_PARTIAL}"), *folder.glob(f"iter_*{_REPLACED}")]:
        shutil.rmtree(leftover, ignore_errors=True)
    complaints = []
    for iteration in [] if keep_last is None else candidates(folder)[keep_last:]:
        path = checkpoint_path(folder, iteration)
        try:
            shutil.rmtree(path)
        except OSError as error:
            complaints.append(f"{path} is past --keep-last {keep_last} but cannot be removed ({error.strerror})")
    return complaints


def check_save_folder(save: Path, load: Path | None, finetune: bool) -> None:
    """Refuse a folder that cannot be written, or that holds checkpoints which this run does not continue."""
    found = candidates(save)
    if found and (finetune or load is None or load.resolve() != save.resolve()):
        fix = f"continue them with --load {save}" + (" and without --finetune" if finetune else "")
        raise UserError(
            f"--save {save} already holds checkpoints (the last at iteration {found[0]}), and this run does not "
            "continue "
            f"them: {fix}, or choose an empty folder"
        )
    try:
        save.mkdir(parents=True, exist_ok=True)
        probe = save / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--save {save} cannot be written ({error.strerror}): choose a folder that you own") from None


def _write_durably(path: Path, text: str) -> None:
    """Replace ``path`` in one step, on disk before anything written later."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _flush(path: Path) -> None:
    """Wait until what ``path`` holds, a file's bytes or a folder's names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
