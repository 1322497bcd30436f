"""Merge indexed datasets made with the same tokenizer, such as the shards of preprocess_data.py.

    %(prog)s --input data/part-*_text_document.idx --output-prefix data/corpus_text_document

writes data/corpus_text_document.bin, .idx and .json.
"""

from __future__ import annotations

from megatron.ltd.data.merge import MergeConfig, merge
from megatron.ltd.flags import read_command


def main() -> None:
    """Read the flags, merge the datasets, and print a summary."""
    (config,) = read_command(__doc__, MergeConfig)
    print(merge(config).summary())
