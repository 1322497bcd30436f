#!/usr/bin/env python3
"""Finetune a vision transformer on Megatron-Core, or train one: dense, with random-LTD, TokenBypass or layer dropping.

    python finetune_vit_ltd.py                       a small one on scikit-learn's digits, with random-LTD
    python finetune_vit_ltd.py --train-data-path FOLDER --valid-data-path FOLDER --num-layers ... --random-ltd ...
    torchrun --nproc-per-node 8 finetune_vit_ltd.py ...

Flags are Megatron-LM's where it has them; --help lists all. See docs/training.md and examples/vit/.
"""

from __future__ import annotations

import sys

from megatron.ltd.arguments import parse_run_config
from megatron.ltd.errors import run_command
from megatron.ltd.launch import launch
from megatron.ltd.tasks import VIT

DIGITS = (
    "--data-path digits --img-h 8 --img-w 8 --patch-dim 2 --num-channels 1 --num-layers 6 --hidden-size 64 "
    "--num-attention-heads 4 --init-method-std 0.1 --attention-dropout 0 --hidden-dropout 0 --micro-batch-size 64 "
    "--train-iters 600 --lr 2e-3 --lr-decay-style cosine --lr-warmup-fraction 0.08 --eval-interval 200"
)
DIGITS_RANDOM_LTD = "--random-ltd --ltd-min-kept-tokens 5 --ltd-growth-steps 450 --ltd-granularity 1"
"""What is run without any flag, on the CPU in a minute or two."""


def main() -> None:
    typed = sys.argv[1:]
    launch(parse_run_config(typed or [*DIGITS.split(), *DIGITS_RANDOM_LTD.split()], VIT))


if __name__ == "__main__":
    run_command(main)
