"""Plot runs: loss, learning rate, kept tokens, saved FLOPs and task scores, over steps, tokens, FLOPs or seconds.

    python tools/plot_run.py --runs runs/random-ltd runs/dense --x tokens flops --output runs/curves.svg

The implementation is in ``megatron.ltd.commands.plot_run``, which ``megatron-ltd plot-run`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("plot-run")
