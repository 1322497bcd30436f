"""Train a tokenizer on text: SentencePiece, or BERT's WordPiece.

    python tools/train_tokenizer.py --input data/corpus/train.jsonl --vocab-size 8192 --output-prefix data/python

The implementation is in ``megatron.ltd.commands.train_tokenizer``, which ``megatron-ltd train-tokenizer`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("train-tokenizer")
