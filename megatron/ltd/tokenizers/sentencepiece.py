"""A SentencePiece model as a tokenizer.

SentencePiece encodes a space as U+2581 and decodes U+2581 as a space, so that the character itself would be changed. If
the model has byte pieces, as those of ``train_tokenizer.py`` do, it is encoded as its three bytes.

Not here: training a model (``train``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import sentencepiece

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer, looks_like_ranks, valid_unicode

_SPACE_MARK = "\u2581"
_PROBE = "a  b\t\u2581 é ½ \U0001f642"
_NO_SPACE_BEFORE = b"\x1a\x02\x18\x00"
"""``normalizer_spec { add_dummy_prefix: false }`` as a protocol buffer; appended to a model it takes precedence."""


def _mismatch(content: bytes) -> str:
    """What the file is instead of a model, and which flag reads it."""
    if looks_like_ranks(content):
        return "not a SentencePiece model but a tiktoken file of ranks; use --tokenizer-type TikTokenizer"
    if content.lstrip()[:1] == b"{":
        return "not a SentencePiece model but JSON; use --tokenizer-type HuggingFaceTokenizer for a tokenizer.json"
    return "not a SentencePiece model; give the .model file of train_tokenizer.py"


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer of a ``.model`` file; ``model`` is its bytes and ``source`` its name for errors."""

    name = "SentencePieceTokenizer"

    def __init__(self, model: bytes, source: str) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError(f"--tokenizer-model {source}: {_mismatch(model)}") from None
        self.vocab_size = self._processor.get_piece_size()
        self.eod = self._find_eod(source)
        self.fingerprint = hashlib.sha256(model).hexdigest()
        marks = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode("utf-8")]
        self._space_mark_ids = marks if self._processor.unk_id() not in marks else None
        self._within_text = sentencepiece.SentencePieceProcessor()
        """The same model without the space that it may put before a text."""
        self._within_text.LoadFromSerializedProto(model + _NO_SPACE_BEFORE)

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``; "</s>" in it is encoded as ordinary pieces."""
        text = valid_unicode(text)
        if self._space_mark_ids is None or _SPACE_MARK not in text:
            return self._processor.encode(text)
        first, *others = text.split(_SPACE_MARK)
        ids = self._processor.encode(first)
        for part in others:
            ids += self._space_mark_ids
            ids += self._within_text.encode(part)
        return ids

    def loss(self) -> str | None:
        """A model may normalize text, and one without byte pieces has no id for what it was not trained on."""
        found = self.decode(self.encode(_PROBE))
        if found == _PROBE:
            return None
        return f"the model changes text: {_PROBE!r} becomes {found!r}; one of train_tokenizer.py keeps every character"

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; ends of documents are left out."""
        return self._processor.decode([token for token in ids if token != self.eod])

    def _find_eod(self, source: str) -> int:
        """The id that ends a document: the model's end of sequence, else the piece </s> or <eod>."""
        if self._processor.eos_id() >= 0:
            return self._processor.eos_id()
        for piece in ("</s>", "<eod>"):
            token = self._processor.piece_to_id(piece)
            if token != self._processor.unk_id():
                return token
        raise UserError(
            f"--tokenizer-model {source}: has no end of sequence, </s> or <eod>, which ends documents; train one with "
            "train_tokenizer.py"
        )
