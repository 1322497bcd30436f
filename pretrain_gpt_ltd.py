#!/usr/bin/env python3
"""Pretrain a GPT on Megatron-Core: dense, with random-LTD, TokenBypass or progressive layer dropping.

    python pretrain_gpt_ltd.py --data-path PREFIX --tokenizer-type ... --num-layers ... --random-ltd ...
    torchrun --nproc-per-node 8 pretrain_gpt_ltd.py ...

Flags are Megatron-LM's where it has them; --help lists all. See docs/training.md and examples/quickstart/.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("pretrain-gpt")
