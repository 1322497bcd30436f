"""Write Python's standard library as a text corpus, split into a training and a held-out part.

    python tools/builtin_corpus.py --output-dir data/corpus

The implementation is in ``megatron.ltd.data.corpus``.
"""

from __future__ import annotations

from megatron.ltd.data.corpus import CorpusConfig, write_corpus
from megatron.ltd.errors import run_command
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, write the corpus, and print a summary."""
    (config,) = read_command(__doc__, CorpusConfig)
    print(write_corpus(config).summary())


if __name__ == "__main__":
    run_command(main)
