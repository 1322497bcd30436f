"""Output files of tools: checked before any work, and written as a whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megatron.ltd.errors import UserError, writes_to
from megatron.ltd.small_files import write_whole


def check_output(flag: str, path: Path, suffixes: Sequence[str], *, overwrite: bool) -> None:
    """Raises ``UserError`` for a name that does not end in one of ``suffixes``, and for an existing file or folder."""
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{flag} {path}: the name must end in {', '.join(suffixes)}; change it")
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; give a file in it")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{flag} {path}: exists; give another name, or --overwrite to replace it")


def write_output(flag: str, path: Path, content: bytes) -> None:
    """Write the whole file or nothing; missing folders are created. Raises ``UserError``."""
    with writes_to(f"{flag} {path}", "give a folder that you may write to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
