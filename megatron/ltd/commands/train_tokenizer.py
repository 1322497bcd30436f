"""Train a tokenizer on text: SentencePiece, or BERT's WordPiece.

    %(prog)s --input data/corpus/train.jsonl --vocab-size 8192 --output-prefix data/python

writes data/python.model; with --model-type wordpiece, data/python-vocab.txt.
"""

from __future__ import annotations

from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, train the tokenizer, and print a summary."""
    (config,) = read_command(__doc__, TrainTokenizerConfig)
    print(train_tokenizer(config).summary())
