"""Convert text to an indexed dataset of tokens for training.

    python tools/preprocess_data.py --input books.jsonl --output-prefix data/books --append-eod --workers 8 \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model data/books.model

The implementation is in ``megatron.ltd.commands.preprocess_data``, which ``megatron-ltd preprocess`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("preprocess")
