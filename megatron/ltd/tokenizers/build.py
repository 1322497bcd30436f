"""From flags to a tokenizer. The library of a tokenizer is imported only if it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron.ltd.errors import UserError
from megatron.ltd.tokenizers.base import Tokenizer, needs_tokenizers, read_definition
from megatron.ltd.tokenizers.config import (
    TOKENIZER_TYPES,
    WORDPIECE_TYPES,
    TokenizerConfig,
    TokenizerFiles,
    assumes_vocab_size,
    model_vocab_size,
    padded_vocab_size,
)

if TYPE_CHECKING:
    from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer


def build_tokenizer(config: TokenizerFiles) -> Tokenizer:
    """The tokenizer of ``--tokenizer-type``, from its local files.

    Raises ``UserError`` if the type is not given, or if a file that it needs is missing, unreadable or invalid.
    """
    kind = config.tokenizer_type
    if kind is None:
        raise UserError(f"--tokenizer-type: required; use one of {', '.join(TOKENIZER_TYPES)}")
    if kind == "ByteTokenizer":
        from megatron.ltd.tokenizers.byte import ByteTokenizer

        return ByteTokenizer()
    if kind == "NullTokenizer":
        from megatron.ltd.tokenizers.null import NullTokenizer

        vocab_size = config.vocab_size if isinstance(config, TokenizerConfig) else None
        if vocab_size is None:
            raise UserError(
                f"--tokenizer-type {kind}: takes its ids from --vocab-size, in training with --mock-data; use the "
                "tokenizer of the text elsewhere"
            )
        return NullTokenizer(vocab_size)
    if kind == "SentencePieceTokenizer":
        from megatron.ltd.tokenizers.sentencepiece import SentencePieceTokenizer

        model = read_definition("--tokenizer-model", config.tokenizer_model, kind)
        return SentencePieceTokenizer(model, source=str(config.tokenizer_model))
    if kind == "HuggingFaceTokenizer":
        with needs_tokenizers(f"--tokenizer-type {kind}"):
            from megatron.ltd.tokenizers.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(config.tokenizer_model, config.eod_token)
    if kind == "TikTokenizer":
        from megatron.ltd.tokenizers.tiktoken_ranks import TikTokenizer

        ranks = read_definition("--tokenizer-model", config.tokenizer_model, kind)
        special = config.tiktoken_special_tokens
        return TikTokenizer(ranks, str(config.tokenizer_model), special, config.eod_token)
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
    """The tokenizer of a workload that allows only WordPiece. Raises ``UserError`` as ``build_tokenizer``."""
    if config.tokenizer_type is None:
        raise UserError(f"--tokenizer-type: required; use {' or '.join(WORDPIECE_TYPES)}")
    tokenizer = build_tokenizer(config)
    from megatron.ltd.tokenizers.wordpiece import WordPieceTokenizer

    assert isinstance(tokenizer, WordPieceTokenizer), "the workload has checked the type"
    return tokenizer


def planned_vocab_size(config: TokenizerConfig, tensor_parallel_size: int, assumed: int | None = None) -> int:
    """The size of a planned model's vocabulary [tokens]; the tokenizer's files need not exist yet.

    The files are read if they exist, else ``--vocab-size`` is used; without either the vocabulary has ``assumed``
    tokens. Raises ``UserError`` if that is None, and for files that cannot be read.
    """
    files = [path for path in (config.vocab_file, config.merge_file, config.tokenizer_model) if path is not None]
    without_files = config.tokenizer_type is None or (config.tokenizer_type != "ByteTokenizer" and not files)
    vocab_size = config.vocab_size
    if vocab_size is None and assumes_vocab_size(config):
        vocab_size = assumed
    if without_files and vocab_size is None:
        raise UserError(
            "--vocab-size: required, because a plan needs the size of the vocabulary; give it, or --tokenizer-type and "
            "its files"
        )
    if vocab_size is not None and (without_files or not all(Path(path).exists() for path in files)):
        return padded_vocab_size(vocab_size, config.make_vocab_size_divisible_by, tensor_parallel_size)
    return model_vocab_size(config, build_tokenizer(config).vocab_size, tensor_parallel_size)
