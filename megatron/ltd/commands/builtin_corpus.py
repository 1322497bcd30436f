"""Write Python's standard library as a text corpus, split into a training and a held-out part.

    %(prog)s --output-dir data/corpus

writes data/corpus/train.jsonl and data/corpus/valid.jsonl.
"""

from __future__ import annotations

from megatron.ltd.data.builtin.corpus import CorpusConfig, write_corpus
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, write the corpus, and print a summary."""
    (config,) = read_command(__doc__, CorpusConfig)
    print(write_corpus(config).summary())
