"""Ids written as numbers, as Megatron-LM's tokenizer of this name reads them: for mock data, which have no text.

"17 4 9"   the ids 17, 4 and 9; --vocab-size N allows 0 to N - 1, of which N - 1 ends a document
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer


class NullTokenizer(Tokenizer):
    """The ids below ``vocab_size``, in decimal."""

    name = "NullTokenizer"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eod = vocab_size - 1
        self.fingerprint = hashlib.sha256(f"numbers below {vocab_size}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The numbers in ``text``. Raises ``UserError`` for a word that is none, or too large."""
        words = text.split()
        wrong = next((word for word in words if not (word.isascii() and word.isdecimal() and self._has(word))), None)
        if wrong is not None:
            raise UserError(
                f"--tokenizer-type {self.name}: reads numbers from 0 to {self.vocab_size - 1}, and {wrong[:20]!r} is "
                "none; use the tokenizer of the text"
            )
        return [int(word) for word in words]

    def _has(self, digits: str) -> bool:
        return len(digits) < 20 and int(digits) < self.vocab_size

    def decode(self, ids: Sequence[int]) -> str:
        """The numbers; ends of documents are left out."""
        return " ".join(str(token) for token in ids if token != self.eod)
