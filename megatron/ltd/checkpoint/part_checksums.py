"""Checks tensors against the checksums that ``torch.save`` has stored with them, which reading them does not look at.

    __0_0.distcp = | ZIP archive of a part of a tensor | ZIP archive of the next | ...
                     data/0: values, and in the archive's list their CRC-32

Megatron-LM's checkpoints have no manifest, so that nothing else tells a changed weight from a trained one. Archives
written with ``torch.serialization.set_crc32_options(False)`` have zeros in place of checksums, and are not checked.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from torch.distributed.checkpoint import Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo

_CHUNK_BYTES = 1 << 24
_FAULTS = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error)
"""What ``zipfile`` raises for archives that it cannot read."""


class _Part(io.RawIOBase):
    """The bytes ``start`` to ``start + length`` of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + (0, self._place, self._length)[whence]
        if place < 0:
            raise ValueError("a place before the file")
        self._place = place
        return place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._place)
        content = self._file.read(max(0, min(len(buffer), self._length - self._place)))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def damaged_tensor(checkpoint: Path, metadata: Metadata, share: int = 0, shares: int = 1) -> str | None:
    """A tensor that ``metadata`` describes of which a part has changed since it was written, and its file; or None.

    Each of several processes can check a share of the parts.
    """
    tensors = metadata.state_dict_metadata.keys()
    places = sorted((item for item in metadata.storage_data.items() if item[0].fqn in tensors), key=_order)
    for index, place in places[share::shares]:
        if not _is_whole(checkpoint / place.relative_path, place):
            return f"a part of {index.fqn} in {place.relative_path}"
    return None


def _order(item: Sequence[object]) -> tuple[str, int]:
    place = item[1]
    assert isinstance(place, _StorageInfo)
    return place.relative_path, place.offset


def _is_whole(path: Path, place: _StorageInfo) -> bool:
    """Whether a part is an archive as ``torch.save`` writes it, whose entries have their checksums. Raises ``OSError``.

    Entries are not compressed, so that none is longer than the part.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(io.BufferedReader(_Part(file, place.offset, place.length))) as archive:
                entries = archive.infolist()
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                    return False
                return not any(entry.CRC for entry in entries) or all(_fits(archive, entry) for entry in entries)
        except _FAULTS:
            return False


def _fits(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether an entry has as many bytes as it says. Raises ``BadZipFile`` if they have another checksum."""
    num_bytes = 0
    with archive.open(entry) as content:
        while chunk := content.read(_CHUNK_BYTES):
            num_bytes += len(chunk)
    return num_bytes == entry.file_size
