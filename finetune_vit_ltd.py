#!/usr/bin/env python3
"""Finetune a vision transformer on Megatron-Core, or train one: dense, with random-LTD, TokenBypass or layer dropping.

    python finetune_vit_ltd.py                       a small one on scikit-learn's digits, with random-LTD
    python finetune_vit_ltd.py --train-data-path FOLDER --valid-data-path FOLDER --num-layers ... --random-ltd ...
    torchrun --nproc-per-node 8 finetune_vit_ltd.py ...

Flags are Megatron-LM's where it has them; --help lists all. See docs/training.md and examples/vit/.
"""

from __future__ import annotations

import sys
from pathlib import Path

from megatron.ltd.commands import run_script

_SETTINGS = Path(__file__).resolve().parent / "examples" / "vit"
DIGITS, DIGITS_RANDOM_LTD = (str(_SETTINGS / f"{name}.yaml") for name in ("digits", "digits_random_ltd"))
"""The settings of the run without any flag, on the CPU in a minute or two."""


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:] or ["--config", DIGITS, DIGITS_RANDOM_LTD]
    run_script("finetune-vit")
