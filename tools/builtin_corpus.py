"""Write the running Python's standard library as a text corpus, split into a training and a held-out part.

    python tools/builtin_corpus.py --output-dir data/corpus

The work is in ``megatron.ltd.data.corpus``.
"""

from __future__ import annotations

import argparse

from megatron.ltd.data.corpus import CorpusConfig, write_corpus
from megatron.ltd.errors import run_command
from megatron.ltd.flags import add_flags, read_flags


def main() -> None:
    """Read the flags, do the work, print what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_flags(parser, CorpusConfig)
    print(write_corpus(read_flags(parser.parse_args(), CorpusConfig)).summary())


if __name__ == "__main__":
    run_command(main)
