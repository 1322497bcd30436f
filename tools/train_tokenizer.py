"""Train a tokenizer on text: SentencePiece, or BERT's WordPiece.

    python tools/train_tokenizer.py --input data/corpus/train.jsonl --vocab-size 8192 --output-prefix data/python

writes data/python.model; with --model-type wordpiece, data/python-vocab.txt. The implementation is in
``megatron.ltd.data.train_tokenizer``.
"""

from __future__ import annotations

from megatron.ltd.data.train_tokenizer import TrainTokenizerConfig, train_tokenizer
from megatron.ltd.errors import run_command
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, train the tokenizer, and print a summary."""
    (config,) = read_command(__doc__, TrainTokenizerConfig)
    print(train_tokenizer(config).summary())


if __name__ == "__main__":
    run_command(main)
