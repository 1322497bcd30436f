"""Where the tokenizers' tests find real files: a folder beside the checkout that not every machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

SAMPLE = """def fade(x, *, by=0.5):
\t'''Spaces   in a row, a tab, and “quotes”: naïve café, 東京, 🙂.'''
    return x * by  # trailing   \n\n\nIt's 1868; they'll say "<|endoftext|>" isn't </s> at all.\r\n"""


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """Public vocabularies and books, kept beside the checkout and not in it."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds GPT-2's vocabulary and public-domain books")
    return folder


@pytest.fixture(scope="session")
def sample_text() -> str:
    """A text with everything that tokenizers get wrong."""
    return SAMPLE
