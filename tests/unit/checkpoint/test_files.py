"""Which checkpoints are complete, which is tried first, and what is refused. The files are plain text, no tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron.ltd.checkpoint import files, start
from megatron.ltd.checkpoint.run_format import FORMAT_VERSION
from tests.support_errors import assert_names, refused

RECORD = {name: {"key": name} for name in ("progress", "schedule", "identity", "order", "config")}


def write(folder: Path, iteration: int) -> Path:
    partial = files.start_partial(folder, iteration)
    (partial / ".metadata").write_text("tensors")
    (partial / "__0_0.distcp").write_text("weights")
    files.write_run(partial, RECORD)
    files.write_manifest(partial, files.checksums(partial, files.file_names(partial)))
    return files.publish(partial, iteration)


def test_a_published_checkpoint_is_complete_and_tracked(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    assert path == tmp_path / "iter_0000005" and files.read_tracker(tmp_path) == 5
    assert files.find_damage(path) is None
    assert files.read_run(path) == RECORD | {"format_version": FORMAT_VERSION}
    assert files.tracker_problem(tmp_path) is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["iter_0000005", files.TRACKER]


def test_every_partial_checkpoint_has_its_own_folder(tmp_path: Path) -> None:
    """The process of a killed run may still be writing into the first folder."""
    first, second = files.start_partial(tmp_path, 5), files.start_partial(tmp_path, 5)
    assert first != second and files.candidates(tmp_path) == []
    files.remove_partial(second)
    assert first.is_dir() and not second.exists()
    files.remove_partial(second)  # removing it twice is no error


def test_publishing_replaces_a_checkpoint_of_the_same_iteration(tmp_path: Path) -> None:
    (write(tmp_path, 5) / "__0_0.distcp").write_text("damaged")
    assert files.find_damage(write(tmp_path, 5)) is None
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["iter_0000005", files.TRACKER]


@pytest.mark.parametrize(
    ("tracker", "order", "complaint"),
    [
        ("4", [4, 2], None),
        ("10", [10, 4, 2], None),
        (None, [10, 4, 2], "is missing"),
        ("", [10, 4, 2], "latest_checkpointed_iteration.txt"),
        ("release", [10, 4, 2], "latest_checkpointed_iteration.txt"),
        ("7", [10, 4, 2], "iteration 7"),
    ],
)
def test_the_tracker_decides_where_to_begin(
    tracker: str | None, order: list[int], complaint: str | None, tmp_path: Path
) -> None:
    for iteration in (2, 4, 10):
        write(tmp_path, iteration)
    if tracker is None:
        (tmp_path / files.TRACKER).unlink()
    else:
        (tmp_path / files.TRACKER).write_text(tracker)
    assert files.candidates(tmp_path) == order
    said = files.tracker_problem(tmp_path)
    assert (said is None) if complaint is None else (said is not None and complaint in said)


def test_folders_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "iter_0000003.partial").mkdir()
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        assert files.candidates(folder) == [] and files.tracker_problem(folder) is None


DAMAGES = {
    "shorter": ("__0_0.distcp", "weight", "__0_0.distcp has 6 bytes instead of 7"),
    "other": ("__0_0.distcp", "Weights", "__0_0.distcp has changed since it was written"),
    "gone": ("__0_0.distcp", None, "__0_0.distcp: No such file or directory"),
    "no manifest": ("manifest.json", None, "manifest.json is missing or not readable"),
    "half a manifest": ("manifest.json", '{"files": {', "manifest.json is missing or not readable"),
    "a manifest of nothing": ("manifest.json", '{"files": {}}', "manifest.json is missing or not readable"),
    "a foreign manifest": ("manifest.json", '["files"]', "manifest.json is missing or not readable"),
    "wrong entries": ("manifest.json", '{"files": {".metadata": 3, "run.json": 3}}', "manifest.json is missing"),
}


@pytest.mark.parametrize(("name", "content", "found"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found(name: str, content: str | None, found: str, tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_text(content)
    assert (files.find_damage(path) or "").startswith(found)
    shares = [files.find_damage(path, share, 2) for share in range(2)]  # two processes find what one finds
    assert found in (shares[0] or "") or found in (shares[1] or "")


def test_keep_last_counts_from_the_tracker(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        write(tmp_path, iteration)
    (tmp_path / files.TRACKER).write_text("3")
    (tmp_path / "iter_0000009.partial").mkdir()
    (tmp_path / "iter_0000001.replaced").mkdir()
    (tmp_path / "mine").mkdir()
    assert files.remove_old(tmp_path, keep_last=2) == []
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_dir()} == {
        "iter_0000002", "iter_0000003", "iter_0000004", "mine",
    }  # fmt: skip


def test_an_old_checkpoint_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for iteration in (1, 2):
        write(tmp_path, iteration)

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files.shutil, "rmtree", refuse)
    (line,) = files.remove_old(tmp_path, keep_last=1)
    assert_names(line, tmp_path / "iter_0000001", "--keep-last 1", "Permission denied")


def test_how_to_continue(tmp_path: Path) -> None:
    assert "--save" in files.how_to_continue(None)
    assert_names(files.how_to_continue(str(tmp_path)), tmp_path)
    path = write(tmp_path, 3)
    assert_names(files.how_to_continue(str(tmp_path)), path, f"--load {tmp_path}")


@pytest.mark.parametrize("content", ["{", "[]", '{"progress": {}}', '{"progress": 3}'])
def test_an_incomplete_run_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with refused("run.json"):
        files.read_run(tmp_path)


def test_a_run_file_states_its_format_and_a_later_one_is_refused(tmp_path: Path) -> None:
    files.write_run(tmp_path, RECORD)
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored == files.read_run(tmp_path) == RECORD | {"format_version": FORMAT_VERSION}
    (tmp_path / "run.json").write_text(json.dumps(stored | {"format_version": FORMAT_VERSION + 1}))
    with refused("run.json", FORMAT_VERSION + 1, FORMAT_VERSION):
        files.read_run(tmp_path)


def test_stored_config_skips_damaged_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / "run.json").write_text("{")
    assert files.stored_config(tmp_path) == RECORD["config"]
    (tmp_path / "iter_0000001" / "manifest.json").unlink()
    with refused("--use-checkpoint-args"):
        files.stored_config(tmp_path)


def test_check_save_folder(tmp_path: Path) -> None:
    start.check_save_folder(tmp_path / "a" / "b", None, finetune=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []
    write(tmp_path, 3)
    start.check_save_folder(tmp_path, tmp_path / "a" / "..", finetune=False)
    for load, finetune in ((None, False), (tmp_path / "a", False), (tmp_path, True)):
        with refused(3):
            start.check_save_folder(tmp_path, load, finetune)
