"""Score a trained model on lm-eval's tasks.

    python tools/evaluate.py --load runs/dense --tasks lambada_openai hellaswag --output_path results
    torchrun --nproc-per-node 8 tools/evaluate.py --load runs/1.3b --tensor-model-parallel-size 2 ...

The implementation is in ``megatron.ltd.commands.evaluate``, which ``megatron-ltd evaluate`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("evaluate")
