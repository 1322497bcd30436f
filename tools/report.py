"""Write an HTML page about a run: flags, plan, totals, curves, stages, scores and unusual events.

    python tools/report.py --run runs/random-ltd --plan plan.json --scores results --output report.html

The implementation is in ``megatron.ltd.commands.report``, which ``megatron-ltd report`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("report")
