"""Files that are not regular, or larger than expected, are not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron.ltd.small_files import bytes_of_files, check_regular, read_small


def test_a_regular_file_and_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_small(tmp_path / "file", 5) == read_small(str(tmp_path / "link")) == b"12345"


def test_bytes_of_files(tmp_path: Path) -> None:
    for name in ("one.x", "two.x", "other.y"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "nothing.x").symlink_to("none")
    (tmp_path / "loop.x").symlink_to("loop.x")
    assert bytes_of_files(tmp_path, "*.x") == 10


def test_what_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, reason in {
        "file": "Larger than 4 bytes", "fifo": "Not a regular file", "zero": "Not a regular file",
        ".": "Is a directory", "none": "No such file", "loop": "Too many levels of symbolic links",
        "a\0b": "null (byte|character)",
    }.items():  # fmt: skip
        with pytest.raises(OSError, match=reason) as caught:
            read_small(tmp_path / name, 4)
        assert caught.value.strerror
        if name != "file":
            with pytest.raises(OSError, match=reason):
                check_regular(tmp_path / name)
