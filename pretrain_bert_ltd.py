#!/usr/bin/env python3
"""Pretrain a BERT on Megatron-Core: dense, with random-LTD, TokenBypass or progressive layer dropping.

    python pretrain_bert_ltd.py --data-path PREFIX --tokenizer-type BertWordPieceLowerCase --vocab-file vocab.txt ...
    torchrun --nproc-per-node 8 pretrain_bert_ltd.py ...

Flags are Megatron-LM's where it has them; --help lists all. The data are made with preprocess_data.py
--split-sentences. See docs/bert.md.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("pretrain-bert")
