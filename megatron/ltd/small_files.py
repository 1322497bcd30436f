"""Reads files that are expected to be small: regular files only, up to a limit; and writes small files. No torch.

A link to ``/dev/zero`` has no end, a FIFO blocks until somebody writes, and a file of a terabyte does not fit in
memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

SMALL_BYTES = 1 << 24
"""The limit of a file of settings."""
LARGE_BYTES = 1 << 28
"""The limit of a vocabulary, or of a list of files or results."""


def read_small(path: Path | str, limit_bytes: int = SMALL_BYTES) -> bytes:
    """The content of a regular file. Raises ``OSError``, whose ``strerror`` says what is wrong, for any other."""
    check_regular(path)
    with open(path, "rb", opener=_without_waiting) as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"Larger than {limit_bytes:,} bytes", str(path))
    return content


def check_regular(path: Path | str) -> None:
    """Raises ``OSError`` unless ``path`` is a regular file, or a link to one."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a null byte in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def bytes_of_files(folder: Path, pattern: str) -> int:
    """The size of the regular files in ``folder`` that match [bytes]; links that lead nowhere count nothing."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename, so that the file is complete or unchanged. Raises ``OSError``."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden folder that becomes ``target`` at the end of the block, or is removed if it fails.

    Raises ``OSError``. A kill leaves it behind; hidden, it is not taken for one of the folders beside it.
    """
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
