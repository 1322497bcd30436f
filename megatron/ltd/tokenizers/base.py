"""The interface of all tokenizers. Imports no torch, so that preprocessing workers start quickly.

Megatron-Core's ``GPTDataset`` uses ``vocab_size``, ``eod`` and ``unique_identifiers`` of a tokenizer (the last in the
key of its index cache). Without a ``pad`` it treats no token as padding: documents are packed, so that there is no
``pad`` here, and no id of the text is masked by mistake.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from megatron.ltd.errors import UserError, reads_from
from megatron.ltd.small_files import LARGE_BYTES, read_small


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    ``name`` is the ``--tokenizer-type``; ``vocab_size`` counts all ids, including the end of document; ``eod`` is the
    id that ends a document; ``fingerprint`` is a sha256 (hex) of the definition of the tokenizer: two tokenizers with
    equal fingerprints give equal ids.
    """

    name: str
    vocab_size: int
    eod: int
    fingerprint: str

    @property
    def unique_identifiers(self) -> dict[str, str]:
        """Identifies the tokenizer, whatever the paths of its files: part of the key of the data index cache."""
        return {"class": self.name, "fingerprint": self.fingerprint}

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, taken literally: the spelling of a special token is ordinary text."""

    def loss(self) -> str | None:
        """How decoding can differ from the text that was encoded, as a sentence for users; None where it cannot."""
        return None

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become the replacement character."""


def valid_unicode(text: str) -> str:
    """``text`` with the replacement character in place of each lone surrogate, which no library encodes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_definition(flag: str, path: str | None, tokenizer_type: str) -> bytes:
    """The bytes of a file that defines a tokenizer. Raises ``UserError`` if it is not given or not readable."""
    if path is None:
        raise UserError(f"{flag}: required with --tokenizer-type {tokenizer_type}; give the path of a local file")
    with reads_from(f"{flag} {path}", "give the path of a local file"):
        content = read_small(path, LARGE_BYTES)
    if not content:
        raise UserError(f"{flag} {path}: the file is empty; use a complete one")
    return content


def looks_like_ranks(content: bytes) -> bool:
    """Whether a file's first line fits a tiktoken file of ranks: a piece in base64, a space, its id."""
    return _RANK.fullmatch(content[:4096].split(b"\n", 1)[0].rstrip(b"\r")) is not None


_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+")
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<eod>")
_MOST_SHOWN = 8


def choose_eod(ids: Mapping[str, int], asked_for: str | None, given: str, special: Mapping[str, int] = {}) -> int:
    """The id that ends a document: that of the token ``asked_for``, or else of the first usual spelling of the end.

    ``given`` is the user's flag and value, ``special`` the tokens that an error lists, by default ``ids``. Raises
    ``UserError`` if there is no such token.
    """
    shown = list(special or ids)
    some = ", ".join(shown[:_MOST_SHOWN]) + (", ..." if len(shown) > _MOST_SHOWN else "") or "none"
    if asked_for is not None:
        if asked_for not in ids:
            raise UserError(
                f"--eod-token {asked_for}: {given} has no such token; choose one of its special tokens: {some}"
            )
        return ids[asked_for]
    found = [end for end in _ENDS if end in ids]
    if not found:
        raise UserError(
            f"{given}: does not say which token ends a document; give it with --eod-token (special tokens: {some})"
        )
    return ids[found[0]]


@contextmanager
def needs_tokenizers(asked_for: str) -> Iterator[None]:
    """A block with an import that needs the package ``tokenizers``. Raises ``UserError`` if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise UserError(
            f"{asked_for}: needs the package tokenizers, which is not installed; run pip install 'megatron-ltd[bert]'"
        ) from None
