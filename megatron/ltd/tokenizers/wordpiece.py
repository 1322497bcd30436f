"""BERT's WordPiece tokenizer from its one local file, run by Hugging Face's ``tokenizers``.

    vocab.txt   a piece a line, its id the line's number from 0; "##" marks a piece that goes on with a word

``BertWordPieceLowerCase`` folds capitals and accents, ``BertWordPieceCase`` keeps them. Text is cut at spaces and
punctuation, so that a special token's spelling in the text is ordinary pieces. What was cut away does not come back:
decoding gives words with single spaces.

Not here: training a vocabulary (``train_wordpiece``), reading the file (``base.read_definition``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer

PADDING, UNKNOWN, CLASS, SEPARATOR, MASK = SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
_LONGEST_SHOWN = 40


class WordPieceTokenizer(Tokenizer):
    """A WordPiece vocabulary; ``vocabulary`` is the file's bytes and ``source`` its name for errors.

    Megatron-Core's BERT dataset reads ``cls``, ``sep``, ``mask``, ``pad`` and ``inv_vocab`` (piece by id). A document
    ends with ``[SEP]`` where a causal model asks for an end.
    """

    def __init__(self, name: str, vocabulary: bytes, source: str) -> None:
        self.name = name
        ids = _read_vocabulary(vocabulary, source)
        self.inv_vocab = {token: piece for piece, token in ids.items()}
        self.vocab_size = len(ids)
        self.pad, self.unk, self.cls, self.sep, self.mask = (ids[piece] for piece in SPECIAL_PIECES)
        self.eod = self.sep
        self.fingerprint = hashlib.sha256(f"{name}\n".encode() + vocabulary).hexdigest()
        self._engine = Engine(models.WordPiece(ids, unk_token=UNKNOWN))
        self._engine.normalizer = normalizer(cased=name == "BertWordPieceCase")
        self._engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._engine.decoder = decoders.WordPiece(prefix=CONTINUES)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that stand for no text, but for padding."""
        return self.unk, self.cls, self.sep, self.mask

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without ``[CLS]`` and ``[SEP]``; "[MASK]" in it is spelled out in ordinary pieces."""
        return self._engine.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ``ids``, a space between two; special pieces are spelled out."""
        return self._engine.decode(list(ids), skip_special_tokens=False)


def normalizer(*, cased: bool) -> normalizers.Normalizer:
    """What BERT does to text first: control characters go, and without ``cased`` capitals and accents too."""
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, lowercase=not cased)


def _read_vocabulary(content: bytes, source: str) -> dict[str, int]:
    """Ids by piece. Raises ``UserError`` for what is no vocabulary of BERT's."""
    file = f"--vocab-file {source}"
    try:
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 at byte {error.start}; give BERT's vocab.txt") from None
    ids: dict[str, int] = {}
    for number, line in enumerate(lines):
        piece = line.removesuffix("\r")
        if not piece or piece in ids:
            shown = piece if len(piece) <= _LONGEST_SHOWN else f"{piece[:_LONGEST_SHOWN]}..."
            what = f'holds "{shown}" again' if piece else "is empty"
            raise UserError(f"{file}:{number + 1}: {what}, and each line is a piece of its own; give BERT's vocab.txt")
        ids[piece] = number
    missing = [piece for piece in SPECIAL_PIECES if piece not in ids]
    if missing:
        raise UserError(
            f"{file}: has no {missing[0]}, which BERT's samples hold; give BERT's vocab.txt, or train one with "
            "train_tokenizer.py --model-type wordpiece"
        )
    if ids[PADDING] != 0:
        raise UserError(
            f"{file}: {PADDING} is line {ids[PADDING] + 1} and must be the first: padding has id 0 in Megatron-Core's "
            "BERT samples; give BERT's vocab.txt, or one with that line moved to the top"
        )
    return ids
