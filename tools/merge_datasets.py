"""Merge indexed datasets made with the same tokenizer, such as the shards of preprocess_data.py.

    python tools/merge_datasets.py --input data/part-*_text_document.idx --output-prefix data/corpus_text_document

The implementation is in ``megatron.ltd.commands.merge_datasets``, which ``megatron-ltd merge-datasets`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("merge-datasets")
