"""From the flags to the tokenizer they ask for. Each kind's library is imported only when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer, needs_tokenizers, read_definition
from megatron.ltd.tokenizers.config import TOKENIZER_TYPES, WORDPIECE_TYPES, TokenizerFiles

if TYPE_CHECKING:
    from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer


def build_tokenizer(config: TokenizerFiles) -> Tokenizer:
    """The tokenizer of ``--tokenizer-type``, from its local files.

    Raises ``UserError`` when the type is not given, or a file that it needs is missing, unreadable or not what it
    should be.
    """
    kind = config.tokenizer_type
    if kind is None:
        raise UserError(f"--tokenizer-type is missing: give one of {', '.join(TOKENIZER_TYPES)}")
    if kind == "ByteTokenizer":
        from megatron.ltd.tokenizers.byte import ByteTokenizer

        return ByteTokenizer()
    if kind == "SentencePieceTokenizer":
        from megatron.ltd.tokenizers.sentencepiece import SentencePieceTokenizer

        model = read_definition("--tokenizer-model", config.tokenizer_model, kind)
        return SentencePieceTokenizer(model, source=str(config.tokenizer_model))
    if kind in WORDPIECE_TYPES:
        with needs_tokenizers(f"--tokenizer-type {kind}"):
            from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer

        vocabulary = read_definition("--vocab-file", config.vocab_file, kind)
        return WordPieceTokenizer(kind, vocabulary, source=str(config.vocab_file))
    from megatron.ltd.tokenizers.gpt2_bpe import GPT2BPETokenizer

    vocabulary = read_definition("--vocab-file", config.vocab_file, kind)
    merges = read_definition("--merge-file", config.merge_file, kind)
    return GPT2BPETokenizer(vocabulary, merges, sources=(str(config.vocab_file), str(config.merge_file)))


def build_wordpiece(config: TokenizerFiles) -> WordPieceTokenizer:
    """The tokenizer of a task whose command line admits WordPiece alone. Raises ``UserError`` as the other."""
    if config.tokenizer_type is None:
        raise UserError(f"--tokenizer-type is missing: give {' or '.join(WORDPIECE_TYPES)}")
    tokenizer = build_tokenizer(config)
    from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer

    assert isinstance(tokenizer, WordPieceTokenizer), "the command line admits no other"
    return tokenizer
