"""Train a SentencePiece vocabulary on text.

    python tools/train_tokenizer.py --input data/corpus/train.jsonl --vocab-size 8192 --output-prefix data/python

writes data/python.model. The work is in ``megatron.ltd.tokenizers.train``.
"""

from __future__ import annotations

import argparse

from megatron.ltd.errors import run_command
from megatron.ltd.flags import add_flags, read_flags
from megatron.ltd.tokenizers.train import TrainTokenizerConfig, train_tokenizer


def main() -> None:
    """Read the flags, do the work, print what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, TrainTokenizerConfig)
    print(train_tokenizer(read_flags(parser.parse_args(), TrainTokenizerConfig)).summary())


if __name__ == "__main__":
    run_command(main)
