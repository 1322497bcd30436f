"""Convert text to an indexed dataset of tokens for training.

    %(prog)s --input books.jsonl --output-prefix data/books --append-eod --workers 8 \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model data/books.model

writes data/books_text_document.bin, .idx and .json.
"""

from __future__ import annotations

from megatron.ltd.data.preprocess import PreprocessConfig, preprocess
from megatron.ltd.flags import read_command
from megatron.ltd.tokenizers.config import TokenizerFiles


def main() -> None:
    """Read the flags, convert the text, and print a summary."""
    print(preprocess(*read_command(__doc__, PreprocessConfig, TokenizerFiles)).summary())
