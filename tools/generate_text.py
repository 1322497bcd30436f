"""Continue a text with a trained model.

    python tools/generate_text.py --load runs/random-ltd --prompt "def " --temperature 0.8 --top-k 40

The implementation is in ``megatron.ltd.commands.generate_text``, which ``megatron-ltd generate`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("generate")
