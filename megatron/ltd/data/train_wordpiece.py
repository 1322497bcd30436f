"""Learns a WordPiece vocabulary for BERT: the special pieces first, then what ``tokenizers``' trainer finds.

    0 [PAD]   1 [UNK]   2 [CLS]   3 [SEP]   4 [MASK]   then characters, then ever longer pieces

Text is folded as the tokenizer that will read the vocabulary folds it. The trainer numbers characters as its hash map
happens to hold them, and breaks ties by those numbers: so they are numbered here first, and the same text gives the
same vocabulary. Not here: reading and writing files (``train``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers

from megatron.ltd.tokenizers.wordpiece import CONTINUES, SPECIAL_PIECES, UNKNOWN, normalizer


def learn_wordpiece(passages: Iterable[str], vocab_size: int, *, cased: bool) -> list[str]:
    """At most ``vocab_size`` pieces in the order of their ids; fewer if the text holds no more.

    ``passages`` is gone through twice. Characters take at most half of the vocabulary, the most frequent ones.
    """
    engine = Engine(models.WordPiece(unk_token=UNKNOWN))
    engine.normalizer = normalizer(cased=cased)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, later = _characters(passages, engine, vocab_size // 4)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_PIECES, *(CONTINUES + character for character in later)],
        continuing_subword_prefix=CONTINUES,
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=False,
    )
    engine.train_from_iterator(passages, trainer)
    ids = engine.get_vocab(with_added_tokens=True)
    return sorted(ids, key=lambda piece: ids[piece])


def _characters(passages: Iterable[str], engine: Engine, limit: int) -> tuple[list[str], list[str]]:
    """The ``limit`` most frequent characters of the text, sorted, and those among them that go on with a word."""
    counts: Counter[str] = Counter()
    going_on: set[str] = set()
    for passage in passages:
        words: Counter[str] = Counter(
            word for word, _ in engine.pre_tokenizer.pre_tokenize_str(engine.normalizer.normalize_str(passage))
        )
        for word, number in words.items():
            going_on.update(word[1:])
            for character in word:
                counts[character] += number
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    return sorted(frequent), sorted(going_on.intersection(frequent))
