"""Writes an indexed dataset under temporary names until it is complete. Imports no torch.

The temporary files are in the same folder; at the end .bin and .json are renamed first and .idx last, so that a dataset
with an index is complete. A failure leaves the previous files unchanged, and no temporary file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from megatron.ltd.errors import UserError

SUFFIXES = (".bin", ".json", ".idx")


class PendingDataset:
    """The files of ``prefix`` by suffix: ``temporary`` ones to write, which ``publish`` gives their ``final`` names."""

    def __init__(self, prefix: str) -> None:
        self.final = {suffix: Path(prefix + suffix) for suffix in SUFFIXES}
        self.temporary = {suffix: Path(f"{prefix}{suffix}.tmp-{os.getpid()}") for suffix in SUFFIXES}

    def publish(self) -> None:
        """Rename the files. An older index is removed first, because it would describe other tokens.

        If there is no new card, an older one is removed too.
        """
        self.final[".idx"].unlink(missing_ok=True)
        for suffix in SUFFIXES:
            if self.temporary[suffix].exists():
                self.temporary[suffix].replace(self.final[suffix])
            else:
                self.final[suffix].unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is left under temporary names (nothing after ``publish``)."""
        for path in self.temporary.values():
            path.unlink(missing_ok=True)


def check_output(output_prefix: str, prefixes: Sequence[str], overwrite: bool) -> None:
    """Raise ``UserError`` for a folder that cannot be written to, and for existing files of ``prefixes``.

    ``prefixes`` are those of ``--output-prefix``.
    """
    folder = Path(prefixes[0]).parent
    if not folder.is_dir():
        raise UserError(f"--output-prefix {output_prefix}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--output-prefix {output_prefix}: the folder {folder} cannot be written to; use another")
    existing = [prefix + suffix for prefix in prefixes for suffix in (".bin", ".idx", ".json")]
    existing = [path for path in existing if os.path.lexists(path)]
    if existing and not overwrite:
        raise UserError(
            f"--output-prefix {output_prefix}: {existing[0]} exists; use another prefix, or --overwrite to replace it"
        )
