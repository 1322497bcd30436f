"""The byte-level tokenizer: the ids are the bytes of the UTF-8 text, and one more id ends a document.

    0 ... 255   the byte itself
    256         end of document, which no text can contain

It is not trained and needs no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from megatron.ltd.tokenizers.base import Tokenizer, valid_unicode


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids, for any text."""

    name = "ByteTokenizer"
    vocab_size = 257
    eod = 256
    fingerprint = hashlib.sha256(b"bytes 0-255, end of document 256").hexdigest()

    def encode(self, text: str) -> list[int]:
        """The bytes of ``text`` in UTF-8."""
        return list(valid_unicode(text).encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the bytes among ``ids``; ends of documents are left out."""
        return bytes(token for token in ids if token < 256).decode("utf-8", errors="replace")
