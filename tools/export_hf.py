"""Export a trained model to a folder that Hugging Face's libraries can load.

    python tools/export_hf.py --load runs/random-ltd --output exported/random-ltd

The implementation is in ``megatron.ltd.commands.export_hf``, which ``megatron-ltd export`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("export")
