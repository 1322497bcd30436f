"""Where checkpoints lie and which of them are whole. No torch.

    <folder>/iter_0000100/                        a whole checkpoint: tensors, run.json, manifest.json
             iter_0000200.partial/                being written, or left by a run that was killed while writing
             latest_checkpointed_iteration.txt    the last whole one, written last

``run.json`` says in plain text what the run was: its progress, learning-rate schedule, identity (what a continuing run must agree
on) and flags.

A checkpoint is written under its ``.partial`` name, listed in its ``manifest.json`` (size and CRC-32 of every file), renamed, and
only then named by the tracker. A kill at any moment leaves the tracker pointing at a whole checkpoint; what was damaged later is
recognised by its manifest.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron.ltd.errors import UserError

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
RUN = "run.json"
_PARTIAL = ".partial"
_REPLACED = ".replaced"
_CHUNK_BYTES = 1 << 24


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of ``iteration`` lies when it is whole."""
    return folder / f"iter_{iteration:07d}"


def partial_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of ``iteration`` is written."""
    return folder / f"iter_{iteration:07d}{_PARTIAL}"


def saved_iterations(folder: Path) -> list[int]:
    """Iterations of the checkpoints in ``folder``, ascending, whole or damaged."""
    names = (path.name for path in folder.glob("iter_*") if path.is_dir())
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def read_tracker(folder: Path) -> int | None:
    """The iteration that the tracker names; None without a tracker or where it holds no number."""
    try:
        return int((folder / TRACKER).read_text().strip())
    except (FileNotFoundError, ValueError):
        return None


def candidates(folder: Path) -> list[int]:
    """Iterations to try, best first: the tracker's, then those before it; without a tracker all, newest first."""
    latest = read_tracker(folder)
    return [iteration for iteration in reversed(saved_iterations(folder)) if latest is None or iteration <= latest]


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Size [bytes] and CRC-32 of files in ``folder``."""
    return {name: {"bytes": (folder / name).stat().st_size, "crc32": _crc32(folder / name)} for name in names}


def file_names(folder: Path) -> list[str]:
    """Files of a checkpoint, sorted, its manifest left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)


def write_manifest(folder: Path, files: dict[str, dict[str, int]]) -> None:
    """List the files of a finished checkpoint."""
    _write_durably(folder / MANIFEST, json.dumps({"files": files}, indent=1))


def read_manifest(folder: Path) -> dict[str, dict[str, int]] | None:
    """The files that the checkpoint in ``folder`` should hold; None without a readable manifest."""
    try:
        return json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_run(folder: Path, record: Mapping[str, Any]) -> None:
    """Describe the run in the checkpoint at ``folder``."""
    (folder / RUN).write_text(json.dumps(record, indent=1))


def read_run(folder: Path) -> dict[str, Any]:
    """What ``write_run`` wrote. Raises ``UserError`` where it is missing or not readable."""
    try:
        return json.loads((folder / RUN).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RUN} cannot be read ({error}): restore the checkpoint from a copy") from None


def stored_config(folder: Path) -> dict[str, Any]:
    """The flags of the run that the newest checkpoint in ``folder`` belongs to. Raises ``UserError`` where there is none."""
    for iteration in candidates(folder):
        if (checkpoint_path(folder, iteration) / RUN).exists():
            return read_run(checkpoint_path(folder, iteration))["config"]
    raise UserError(f"--load {folder} holds no checkpoint to take --use-checkpoint-args from: name a folder that does")


def find_damage(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with the checkpoint in ``folder``, or None. Several processes can check every ``shares``-th file each."""
    manifest = read_manifest(folder)
    if manifest is None:
        return f"{MANIFEST} is missing or not readable"
    for name in sorted(manifest)[share::shares]:
        try:
            found = checksums(folder, [name])[name]
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found["bytes"] != manifest[name]["bytes"]:
            return f"{name} has {found['bytes']} bytes instead of {manifest[name]['bytes']}"
        if found["crc32"] != manifest[name]["crc32"]:
            return f"{name} has changed since it was written"
    return None


def start_partial(folder: Path, iteration: int) -> Path:
    """An empty folder to write the checkpoint of ``iteration`` in."""
    partial = partial_path(folder, iteration)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def publish(folder: Path, iteration: int) -> Path:
    """Give a finished checkpoint its name, then its place in the tracker."""
    final, replaced = checkpoint_path(folder, iteration), folder / f"iter_{iteration:07d}{_REPLACED}"
    if final.exists():
        os.rename(final, replaced)
    os.rename(partial_path(folder, iteration), final)
    _write_durably(folder / TRACKER, str(iteration))
    if replaced.exists():
        shutil.rmtree(replaced)
    return final


def remove_old(folder: Path, keep_last: int | None) -> None:
    """Remove leftovers of killed runs and, with ``keep_last``, all but the newest whole checkpoints up to the tracker's."""
    for leftover in [*folder.glob(f"iter_*{_PARTIAL}"), *folder.glob(f"iter_*{_REPLACED}")]:
        shutil.rmtree(leftover)
    if keep_last is not None:
        for iteration in candidates(folder)[keep_last:]:
            shutil.rmtree(checkpoint_path(folder, iteration))


def check_save_folder(save: Path, load: Path | None) -> None:
    """Refuse a folder that cannot be written, or that holds checkpoints which this run does not continue."""
    found = candidates(save)
    if found and (load is None or load.resolve() != save.resolve()):
        raise UserError(
            f"--save {save} already holds checkpoints (the last at iteration {found[0]}), and this run does not continue "
            f"them: add --load {save}, or choose an empty folder"
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
