"""Encoding any text with tiktoken, including text that would exhaust its regular-expression engine.

The engine keeps a stack entry for each character of a run of white space that it may have to give back, and panics at
a million. Runs longer than 400,000 characters are therefore cut before they are encoded; all other text is encoded as
a whole, with tiktoken's own ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import tiktoken

from megatron.ltd.tokenizers.base import Tokenizer

LONGEST_SPACE = 400_000
_SPACES = re.compile(r"\s+")


class TiktokenTokenizer(Tokenizer):
    """A tokenizer that tiktoken runs, by its ``encoding``."""

    encoding: tiktoken.Encoding

    def encode(self, text: str) -> list[int]:
        if len(text) <= LONGEST_SPACE:
            return self.encoding.encode_ordinary(text)
        return [token for part in _parts(text) for token in self.encoding.encode_ordinary(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, with special tokens as their spelling."""
        return self.encoding.decode(list(ids), errors="replace")


def _parts(text: str) -> Iterator[str]:
    """``text`` in parts without longer runs of white space."""
    start = 0
    for run in _SPACES.finditer(text):
        for cut in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE):
            yield text[start:cut]
            start = cut
    yield text[start:]
