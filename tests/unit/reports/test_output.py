"""Output files are checked before any work, and written completely or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from megatron.ltd.reports.output import check_output, write_output
from tests.support_errors import refused

SUFFIXES = (".png", ".svg")


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    old, dangling = tmp_path / "old.png", tmp_path / "dangling.svg"
    old.write_text("old")
    dangling.symlink_to(tmp_path / "nowhere")
    with refused(f"--output {tmp_path / 'png'}", "png, .svg"):
        check_output("--output", tmp_path / "png", SUFFIXES, overwrite=True)
    for path in (old, dangling):
        with refused(f"--output {path}", "--overwrite"):
            check_output("--output", path, SUFFIXES, overwrite=False)
        check_output("--output", path, SUFFIXES, overwrite=True)
    check_output("--output", tmp_path / "new" / "NEW.PNG", SUFFIXES, overwrite=False)


def test_folders_are_created_and_files_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.png"
    for content in (b"1", b"22"):
        write_output("--output", path, content)
        assert path.read_bytes() == content and [path] == list(path.parent.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "c.png"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with refused(f"--output {path}", "No space left on device"):
        write_output("--output", path, b"new")
    assert path.read_text() == "old" and [path] == list(tmp_path.iterdir())
