"""Convert a Hugging Face GPT-2 or Llama to a checkpoint for finetuning, evaluation and export with any layout.

    python tools/import_hf.py --load gpt2-medium --save runs/gpt2-medium

The implementation is in ``megatron.ltd.commands.import_hf``, which ``megatron-ltd import`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("import")
