"""A sample text for the tests of tokenizers."""

from __future__ import annotations

import pytest

SAMPLE = """def fade(x, *, by=0.5):
\t'''Spaces   in a row, a tab, and “quotes”: naïve café, 東京, 🙂.'''
    return x * by  # trailing   \n\n\nIt's 1868; they'll say "<|endoftext|>" isn't </s> at all.\r\n"""


@pytest.fixture(scope="session")
def sample_text() -> str:
    """A text with what tokenizers often get wrong: repeated spaces, quotes, CJK, emoji, special tokens as text."""
    return SAMPLE
