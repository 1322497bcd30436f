"""The data and the finished run that the tests of this folder use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.runs import run_status, tiny_flags, write_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of a byte-level dataset."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """The folder of the uninterrupted tiny run, with checkpoints of iterations 2, 4 and 6. Tests must not change it."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert run_status(tiny_flags(data, "--save", folder, "--save-interval", 2)) == (0, "")
    return folder


@pytest.fixture
def trained(tmp_path: Path, straight: Path) -> Iterator[Path]:
    """A copy of ``straight`` that a test may damage."""
    yield Path(shutil.copytree(straight, tmp_path / "trained"))
