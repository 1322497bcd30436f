"""GPT-2's byte-pair encoding from its two local files, run by tiktoken.

    encoder.json   {piece: id}, with pieces in GPT-2's printable alphabet for bytes
    vocab.bpe      a version line, then one merge "left right" per line, in the order of merging

tiktoken merges by id, so that ids must be in the order of the merges, which is checked here. Its own loader is not
used: it caches files in the temporary folder by path, and returns the cached copy after a file has changed.

Not here: reading the files (``base.read_definition``).
"""

from __future__ import annotations

import hashlib

import tiktoken

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json
from megatron.ltd.tokenizers.tiktoken_text import TiktokenTokenizer

END_OF_TEXT = "<|endoftext|>"

# GPT-2's published split into words, with possessive quantifiers so that long runs are matched in linear time.
_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class GPT2BPETokenizer(TiktokenTokenizer):
    """GPT-2's tokenizer; ``vocabulary`` and ``merges`` are the bytes of the files, ``sources`` their paths."""

    name = "GPT2BPETokenizer"

    def __init__(self, vocabulary: bytes, merges: bytes, sources: tuple[str, str]) -> None:
        ids = _read_vocabulary(vocabulary, sources[0])
        if END_OF_TEXT not in ids:
            raise UserError(f"--vocab-file {sources[0]}: has no {END_OF_TEXT}, which ends documents; use GPT-2's file")
        self.eod = ids.pop(END_OF_TEXT)
        self.vocab_size = max([self.eod, *ids.values()]) + 1
        self.fingerprint = fingerprint(vocabulary, merges)
        self.encoding = tiktoken.Encoding(
            self.name,
            pat_str=_WORDS,
            mergeable_ranks=_mergeable_ranks(ids, _read_merges(merges, sources[1]), sources),
            special_tokens={END_OF_TEXT: self.eod},
        )


def fingerprint(vocabulary: bytes, merges: bytes) -> str:
    """The fingerprint of the tokenizer that these two files define."""
    return hashlib.sha256(hashlib.sha256(vocabulary).digest() + hashlib.sha256(merges).digest()).hexdigest()


def _read_vocabulary(content: bytes, source: str) -> dict[str, int]:
    try:
        ids = parse_json(content)
    except ValueError as error:
        raise UserError(f"--vocab-file {source}: is not JSON ({error}); give GPT-2's encoder.json") from None
    if not isinstance(ids, dict) or not all(type(token) is int and token >= 0 for token in ids.values()):
        raise UserError(f"--vocab-file {source}: is not an object of piece to id; give GPT-2's encoder.json")
    return ids


def _read_merges(content: bytes, source: str) -> list[tuple[str, str]]:
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"--merge-file {source}: is not UTF-8 at byte {error.start}; give GPT-2's vocab.bpe") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise UserError(f"--merge-file {source}:{number}: is not two pieces and a space; give GPT-2's vocab.bpe")
        merges.append((parts[0], parts[1]))
    return merges


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes: a printable Latin-1 character is itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _mergeable_ranks(ids: dict[str, int], merges: list[tuple[str, str]], sources: tuple[str, str]) -> dict[bytes, int]:
    """Bytes of each piece to its id. Raises ``UserError`` when the files do not describe one encoding."""
    alphabet = byte_alphabet()
    both = f"--vocab-file {sources[0]} and --merge-file {sources[1]}"
    order = list(alphabet) + [left + right for left, right in merges]
    if len(order) != len(ids) or set(order) != set(ids):
        raise UserError(
            f"{both}: do not match ({len(ids)} pieces besides {END_OF_TEXT}, but 256 bytes and {len(merges)} merges "
            "make others); use the two files of one tokenizer"
        )
    merged_ids = [ids[piece] for piece in order[256:]]
    if merged_ids != sorted(merged_ids) or (merged_ids and max(ids[byte] for byte in alphabet) > merged_ids[0]):
        raise UserError(f"{both}: ids are not in the order of the merges; use GPT-2's files, or files made in that way")
    try:
        return {bytes(alphabet[char] for char in piece): token for piece, token in ids.items()}
    except KeyError as error:
        raise UserError(f"--vocab-file {sources[0]}: character {error} is not a byte; use GPT-2's file") from None
