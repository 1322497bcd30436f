#!/usr/bin/env python3
"""Finetune a BERT on labelled sentences: dense, with random-LTD, TokenBypass or progressive layer dropping.

    python finetune_bert_ltd.py --pretrained-checkpoint PRETRAINED --load FINETUNED --save FINETUNED \\
        --use-checkpoint-args --vocab-file vocab.txt --train-data-path train.tsv --valid-data-path dev.tsv \\
        --train-samples 300000 --lr 5e-5
    torchrun --nproc-per-node 8 finetune_bert_ltd.py ...

Flags are Megatron-LM's where it has them; --help lists all. See docs/bert.md and examples/bert_large/.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("finetune-bert")
