"""The data that the runs of this folder train on."""

from __future__ import annotations

import pytest

from tests.support import small_dataset


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prefix of small documents, bytes as tokens."""
    return small_dataset(tmp_path_factory.mktemp("data"))
