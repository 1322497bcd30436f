"""Parts of tensors, as torch's distributed checkpoint writes them, against the checksums that are stored with them."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as torch_checkpoint

from megatron.ltd.checkpoint.part_checksums import damaged_tensor
from megatron.ltd.checkpoint.safe_metadata import read_metadata

WEIGHTS = {"first": torch.arange(40.0), "second": torch.arange(100.0, 130.0).reshape(5, 6), "none": torch.empty(0)}


def saved(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one process is meant
        torch_checkpoint.save(WEIGHTS, checkpoint_id=folder, no_dist=True)
    return folder


def changed(folder: Path, old: bytes, new: bytes) -> None:
    """Replace ``old``, which is there once, in the file of the tensors."""
    (path,) = folder.glob("*.distcp")
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def found(folder: Path, *share: int) -> str | None:
    return damaged_tensor(folder, read_metadata(folder), *share)


def test_every_byte_of_the_values_counts(tmp_path: Path) -> None:
    assert found(saved(tmp_path)) is None
    values = WEIGHTS["second"].numpy().tobytes()
    (path,) = tmp_path.glob("*.distcp")
    whole = path.read_bytes()
    for place in range(len(values)):
        changed(tmp_path, values, values[:place] + bytes([values[place] ^ 16]) + values[place + 1 :])
        assert found(tmp_path) == f"a part of second in {path.name}"
        path.write_bytes(whole)
    assert found(tmp_path) is None


def test_the_parts_are_shared(tmp_path: Path) -> None:
    """Exactly one of three processes finds the one tensor that has changed."""
    values = WEIGHTS["first"].numpy().tobytes()
    changed(saved(tmp_path), values, values[::-1])
    answers = [found(tmp_path, share, 3) for share in range(3)]
    assert answers.count(None) == 2 and "a part of first in __0_0.distcp" in answers


def test_archives_without_checksums_are_not_checked(tmp_path: Path) -> None:
    """torch writes zeros in place of them, and reads such files."""
    torch.serialization.set_crc32_options(False)
    try:
        saved(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    values = WEIGHTS["first"].numpy().tobytes()
    changed(tmp_path, values, values[::-1])
    assert found(tmp_path) is None


def compressed(content: bytes) -> bytes:
    """An archive that expands to a thousand times its size."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(len(content) * 1000))
    return target.getvalue()


@pytest.mark.parametrize("make", [lambda content: bytes(len(content)), lambda content: content[:-30], compressed])
def test_what_is_no_archive_of_torch_has_changed(tmp_path: Path, make: object) -> None:
    assert callable(make)
    (path,) = saved(tmp_path).glob("*.distcp")
    metadata = read_metadata(tmp_path)
    places = {index.fqn: place for index, place in metadata.storage_data.items()}
    start, length = places["second"].offset, places["second"].length
    content = path.read_bytes()
    other = make(content[start : start + length])[:length]
    path.write_bytes(content[:start] + other.ljust(length, b"\0") + content[start + length :])
    assert found(tmp_path) == f"a part of second in {path.name}"
