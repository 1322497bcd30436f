"""Any Hugging Face tokenizer from local files, run by the library ``tokenizers``.

    tokenizer.json             the tokenizer; alone, or in a folder beside
    tokenizer_config.json      names the special token that ends a text (as do config.json and generation_config.json)

No code from the folder runs, and nothing is downloaded. The spelling of a special token inside a text is ordinary text,
as with every tokenizer here, and the only token added to a document is its end.

Not here: files that are not ``tokenizer.json``, such as SentencePiece's ``tokenizer.model``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from megatron.ltd.errors import UserError
from megatron.ltd.json_text import parse_json
from megatron.ltd.small_files import read_small
from megatron.ltd.tokenizers.base import Tokenizer, choose_eod, read_definition, valid_unicode

FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_MODELS = ("config.json", "generation_config.json")


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of ``path``, a ``tokenizer.json`` or a folder that holds one.

    ``eod_token`` is the spelling of the token that ends a document; by default the one that the folder's files name, or
    else the first special token with a usual spelling of the end. Raises ``UserError`` if the file is not a tokenizer,
    or if no token ends a document.
    """

    name = "HuggingFaceTokenizer"

    def __init__(self, path: str | None, eod_token: str | None = None) -> None:
        file = None if path is None else str(Path(path) / FILE if Path(path).is_dir() else path)
        definition = read_definition("--tokenizer-model", file, self.name)
        given = f"--tokenizer-model {path}"
        self._engine = _engine(definition, given)
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True  # as text
        added = self._engine.get_added_tokens_decoder()
        self.special_tokens = {token.content: number for number, token in sorted(added.items()) if token.special}
        known = self._engine.get_vocab(with_added_tokens=True)
        if eod_token is None:
            eod_token = _named_end(Path(str(file)).parent, {number: piece for piece, number in known.items()})
        choices = known if eod_token is not None else self.special_tokens
        self.eod = choose_eod(choices, eod_token, given, self.special_tokens)
        self.eod_token = next(piece for piece, number in known.items() if number == self.eod)
        self.vocab_size = max(known.values()) + 1
        self.definition = definition
        self.fingerprint = hashlib.sha256(definition + f"\n{self.eod}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; a special token's spelling in it is ordinary text."""
        return self._engine.encode(valid_unicode(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, without the end-of-document tokens."""
        return self._engine.decode([token for token in ids if token != self.eod], skip_special_tokens=False)


def _engine(definition: bytes, given: str) -> Engine:
    try:
        return Engine.from_buffer(definition)
    except Exception as error:  # the library raises bare exceptions
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"{given}: the installed version of the library tokenizers cannot read it ({reason}); give a "
            "tokenizer.json, or the folder that contains it"
        ) from None


def _named_end(folder: Path, pieces: Mapping[int, str]) -> str | None:
    """The token that ends a text according to the files beside ``tokenizer.json``; None if they name none."""
    settings = _read(folder / _SETTINGS)
    named = settings.get("eos_token")
    if isinstance(named, dict):  # an added token with its settings
        named = named.get("content")
    if isinstance(named, str):
        return named
    for name in _MODELS:
        number = _read(folder / name).get("eos_token_id")
        if isinstance(number, list) and number:
            number = number[0]
        if type(number) is int and number in pieces:
            return pieces[number]
    return None


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or contains something else."""
    try:
        found = parse_json(read_small(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
