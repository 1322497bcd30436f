"""BERT's WordPiece tokenizer from its one local file, run by Hugging Face's ``tokenizers``.

    vocab.txt   one piece per line, whose id is the line number from 0; "##" marks a piece that continues a word

``BertWordPieceLowerCase`` removes capitals and accents, ``BertWordPieceCase`` keeps them. Text is split at spaces and
punctuation, so that the spelling of a special token is encoded as ordinary pieces. Decoding gives words with single
spaces.

Not here: training a vocabulary (``train_wordpiece``), reading the file (``base.read_definition``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer, valid_unicode

PADDING, UNKNOWN, CLASS, SEPARATOR, MASK = SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"
_LONGEST_SHOWN = 40


class WordPieceTokenizer(Tokenizer):
    """A WordPiece vocabulary; ``vocabulary`` is the bytes of the file and ``source`` its name for errors.

    Megatron-Core's BERT dataset uses ``cls``, ``sep``, ``mask``, ``pad`` and ``inv_vocab`` (piece by id). For a causal
    model ``[SEP]`` ends a document.
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
        """Ids of the special tokens except padding."""
        return self.unk, self.cls, self.sep, self.mask

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without ``[CLS]`` and ``[SEP]``; "[MASK]" in it is encoded as ordinary pieces."""
        return self._engine.encode(valid_unicode(text), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ``ids``, separated by spaces; special pieces are included."""
        return self._engine.decode(list(ids), skip_special_tokens=False)


def normalizer(*, cased: bool) -> normalizers.Normalizer:
    """BERT's normalizer: it removes control characters, and unless ``cased`` capitals and accents."""
    return normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, lowercase=not cased)


def _read_vocabulary(content: bytes, source: str) -> dict[str, int]:
    """Ids by piece. Raises ``UserError`` if the file is not a vocabulary of BERT's."""
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
            what = f'"{shown}" appears twice' if piece else "the line is empty"
            raise UserError(f"{file}:{number + 1}: {what}, but each line must be another piece; use BERT's vocab.txt")
        ids[piece] = number
    missing = [piece for piece in SPECIAL_PIECES if piece not in ids]
    if missing:
        raise UserError(
            f"{file}: has no {missing[0]}, which BERT's samples need; use BERT's vocab.txt, or train one with "
            "train_tokenizer.py --model-type wordpiece"
        )
    if ids[PADDING] != 0:
        raise UserError(
            f"{file}: {PADDING} is line {ids[PADDING] + 1}, but must be the first, because padding has id 0 in "
            "Megatron-Core's BERT samples; use BERT's vocab.txt, or move that line to the top"
        )
    return ids
