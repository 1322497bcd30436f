"""A tiktoken file of ranks with Llama 3's word pattern and special tokens, run by tiktoken.

    tokenizer.model    one line per piece: its bytes in base64, a space, its id; ids are 0, 1, 2, ... in merge order

Special tokens are not in the file; their ids follow the last piece's. By default they are Llama 3's 256 (begin and end
of text, start and end of header, end of turn, and reserved ones); ``--tiktoken-special-tokens`` names others.

Not here: reading the file (``base.read_definition``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence

import tiktoken

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import choose_eod, looks_like_ranks
from megatron.ltd.tokenizers.tiktoken_text import TiktokenTokenizer

_NUM_SPECIAL = 256
_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}

# The published pattern with which Llama 3 splits text into words (the same as OpenAI's cl100k_base).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3_special_tokens() -> tuple[str, ...]:
    """Llama 3's special tokens in the order of their ids."""
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(_NUM_SPECIAL))
    return tuple(_NAMED.get(place) or next(reserved) for place in range(_NUM_SPECIAL))


class TikTokenizer(TiktokenTokenizer):
    """A file of ranks; ``ranks`` is its bytes, ``source`` its name for errors.

    ``special_tokens`` are the tokens whose ids follow the file's, Llama 3's if empty; ``eod_token`` is one of them, by
    default the one that ends a text. Raises ``UserError`` if the file is not a file of ranks.
    """

    name = "TikTokenizer"

    def __init__(
        self, ranks: bytes, source: str, special_tokens: Sequence[str] = (), eod_token: str | None = None
    ) -> None:
        self.ranks = ids = _read_ranks(ranks, source)
        special = tuple(special_tokens) or llama3_special_tokens()
        if len(set(special)) < len(special):
            twice = next(token for token in special if special.count(token) > 1)
            raise UserError(f"--tiktoken-special-tokens: {twice} is given twice; give each token once")
        self.special_tokens = {token: len(ids) + place for place, token in enumerate(special)}
        self.eod = choose_eod(self.special_tokens, eod_token, f"--tokenizer-model {source}")
        self.vocab_size = len(ids) + len(special)
        definition = hashlib.sha256(ranks).hexdigest() + "\n".join(special) + f"\n{self.eod}"
        self.fingerprint = hashlib.sha256(definition.encode("utf-8", "surrogatepass")).hexdigest()
        self.encoding = tiktoken.Encoding(
            self.name, pat_str=WORDS, mergeable_ranks=ids, special_tokens=self.special_tokens
        )


def _read_ranks(content: bytes, source: str) -> dict[bytes, int]:
    given = f"--tokenizer-model {source}"
    if not looks_like_ranks(content):
        raise UserError(
            f"{given}: not a tiktoken file of ranks; give one such as Llama 3's tokenizer.model, or use "
            "--tokenizer-type SentencePieceTokenizer or HuggingFaceTokenizer for their files"
        )
    ids: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            piece, rank = line.split(b" ")
            token = base64.b64decode(piece, validate=True)
            is_next = int(rank) == len(ids) and token not in ids
        except (ValueError, binascii.Error):
            raise UserError(f"{given}:{number}: expected a piece in base64 and its id; give a complete file") from None
        if not is_next:
            raise UserError(f"{given}:{number}: expected ids 0, 1, 2, ... of distinct pieces; give a complete file")
        ids[token] = len(ids)
    missing = [byte for byte in range(256) if bytes([byte]) not in ids]
    if missing:
        raise UserError(f"{given}: no piece for the byte 0x{missing[0]:02X}; give a complete file")
    return ids
