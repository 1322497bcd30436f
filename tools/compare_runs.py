"""Compare runs on lm-eval's tasks: one table with standard errors and the average, in Markdown or LaTeX.

    python tools/compare_runs.py --results runs/dense/scores runs/random-ltd/scores --names dense random-LTD

The implementation is in ``megatron.ltd.commands.compare_runs``, which ``megatron-ltd compare-runs`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("compare-runs")
