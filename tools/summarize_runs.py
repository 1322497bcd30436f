"""Compare runs: a table of loss, cost and savings of each, and their loss curves.

    python tools/summarize_runs.py --runs runs/random-ltd runs/dense --plot runs/loss.png

The implementation is in ``megatron.ltd.commands.summarize_runs``, which ``megatron-ltd summarize-runs`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("summarize-runs")
