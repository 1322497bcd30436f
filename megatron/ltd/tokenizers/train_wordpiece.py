"""Learns a WordPiece vocabulary for BERT: the special pieces first, then what ``tokenizers``' trainer finds.

    0 [PAD]   1 [UNK]   2 [CLS]   3 [SEP]   4 [MASK]   then characters, then ever longer pieces

Text is folded as the tokenizer that will read the vocabulary folds it. Not here: reading and writing files (``train``).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers

from megatron.ltd.tokenizers.wordpiece import CONTINUES, SPECIAL_PIECES, UNKNOWN, normalizer


def learn_wordpiece(passages: Iterable[str], vocab_size: int, *, cased: bool) -> list[str]:
    """At most ``vocab_size`` pieces in the order of their ids; fewer where the text holds no more."""
    engine = Engine(models.WordPiece(unk_token=UNKNOWN))
    engine.normalizer = normalizer(cased=cased)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_PIECES),
        continuing_subword_prefix=CONTINUES,
        limit_alphabet=vocab_size // 2,
        show_progress=False,
    )
    engine.train_from_iterator(passages, trainer)
    ids = engine.get_vocab(with_added_tokens=True)
    return sorted(ids, key=lambda piece: ids[piece])
