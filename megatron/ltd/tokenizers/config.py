"""Which tokenizer a run uses, and the size of the vocabulary its model is built for. Imports no torch.

    model vocabulary = the smallest multiple of lcm(d, tp) not below max(tokenizer's vocabulary, --vocab-size)

with d = ``--make-vocab-size-divisible-by`` and tp the tensor-parallel size, so that every tensor-parallel rank holds an
equal share of the embedding. Ids above the tokenizer's own never occur in data, but the softmax includes them.
Megatron-LM pads to d * tp, so that its model depends on the tensor-parallel size; here the model is the same for
every tp that divides d. For Megatron-LM's size give d * tp.

Not here: the tokenizers themselves (``build.build_tokenizer``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron.ltd.errors import UserError
from megatron.ltd.flags import Settings, flag
from megatron.ltd.flags.ranges import SIZE

WORDPIECE_TYPES = ("BertWordPieceLowerCase", "BertWordPieceCase")
TOKENIZER_TYPES = (
    "GPT2BPETokenizer",
    "SentencePieceTokenizer",
    "HuggingFaceTokenizer",
    "TikTokenizer",
    "ByteTokenizer",
    "NullTokenizer",
    *WORDPIECE_TYPES,
)

GPT2_VOCAB_SIZE = 50_257
"""What a plan assumes if no flag says the size of the vocabulary [tokens]."""


@dataclass(frozen=True)
class TokenizerFiles(Settings):
    """tokenizer"""

    tokenizer_type: str | None = flag(
        None,
        affects="model",
        choices=TOKENIZER_TYPES,
        help="GPT2BPETokenizer reads --vocab-file and --merge-file; SentencePieceTokenizer, HuggingFaceTokenizer (a "
        "tokenizer.json or its folder) and TikTokenizer (a file of ranks, as of Llama 3) read --tokenizer-model; "
        "ByteTokenizer reads nothing: ids 0-255 are the bytes of the UTF-8 text and 256 ends a document; "
        "NullTokenizer, for --mock-data, has the ids below --vocab-size; "
        "BertWordPieceLowerCase and BertWordPieceCase read --vocab-file",
    )
    vocab_file: str | None = flag(
        None, affects="model", metavar="FILE", help="GPT-2 BPE: encoder.json (vocab.json); BERT: vocab.txt"
    )
    merge_file: str | None = flag(None, affects="model", metavar="FILE", help="GPT-2 BPE: vocab.bpe (merges.txt)")
    tokenizer_model: str | None = flag(
        None,
        affects="model",
        metavar="FILE",
        help="SentencePiece: the .model file; Hugging Face: tokenizer.json or a folder with it; tiktoken: the ranks",
    )
    eod_token: str | None = flag(
        None,
        affects="model",
        metavar="TOKEN",
        help="Hugging Face and tiktoken: the token that ends a document (default: the one that the files name)",
    )
    tiktoken_special_tokens: tuple[str, ...] = flag(
        (),
        affects="model",
        metavar="TOKEN",
        help="tiktoken: special tokens, in the order of their ids after the ranks (default: Llama 3's 256)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer_type is not None and self.tokenizer_type not in TOKENIZER_TYPES:
            raise UserError(f"--tokenizer-type {self.tokenizer_type}: give one of {', '.join(TOKENIZER_TYPES)}")
        named = {"HuggingFaceTokenizer", "TikTokenizer"}
        if self.eod_token is not None and self.tokenizer_type not in named:
            raise UserError(
                f"--eod-token {self.eod_token}: has no effect with --tokenizer-type {self.tokenizer_type}, whose files "
                f"decide; leave it out, or take {' or '.join(sorted(named))}"
            )
        if self.tiktoken_special_tokens and self.tokenizer_type != "TikTokenizer":
            raise UserError(
                f"--tiktoken-special-tokens {' '.join(self.tiktoken_special_tokens)}: has no effect with "
                f"--tokenizer-type {self.tokenizer_type}; leave it out, or take TikTokenizer"
            )


@dataclass(frozen=True)
class TokenizerConfig(TokenizerFiles):
    """tokenizer"""

    vocab_size: int | None = flag(
        None,
        range=SIZE,
        affects="model",
        metavar="N",
        help="build the model for at least this many tokens, before padding; by default the tokenizer's own number",
    )
    make_vocab_size_divisible_by: int = flag(
        128,
        range=SIZE,
        affects="model",
        metavar="N",
        help="pad the model's vocabulary to a multiple of this (and of the tensor-parallel size)",
    )


def assumes_vocab_size(config: TokenizerConfig) -> bool:
    """Whether a plan has to assume the size of the vocabulary, because no flag says it."""
    return config.vocab_size is None and config.tokenizer_type is None


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """The smallest multiple of ``divisible_by`` and ``tensor_parallel_size`` not below ``vocab_size`` [tokens]."""
    multiple = math.lcm(divisible_by, tensor_parallel_size)
    return -(-vocab_size // multiple) * multiple


def unpadded_vocab_size(config: TokenizerConfig, tokenizer_vocab_size: int) -> int:
    """The ids that a model knows before padding [tokens]: the tokenizer's, or more with ``--vocab-size``.

    Raises ``UserError`` when ``--vocab-size`` is below what the tokenizer produces.
    """
    if config.vocab_size is not None and config.vocab_size < tokenizer_vocab_size:
        raise UserError(
            f"--vocab-size {config.vocab_size}: the tokenizer makes ids up to {tokenizer_vocab_size - 1}; "
            f"give at least {tokenizer_vocab_size} or leave it out"
        )
    return max(config.vocab_size or 0, tokenizer_vocab_size)


def model_vocab_size(config: TokenizerConfig, tokenizer_vocab_size: int, tensor_parallel_size: int) -> int:
    """The vocabulary the model is built for [tokens]: the formula at the top of this file.

    Raises ``UserError`` when ``--vocab-size`` is below what the tokenizer produces.
    """
    wanted = unpadded_vocab_size(config, tokenizer_vocab_size)
    return padded_vocab_size(wanted, config.make_vocab_size_divisible_by, tensor_parallel_size)
