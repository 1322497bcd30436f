"""Write an HTML page about a run: flags, plan, totals, curves, stages, scores and unusual events.

``--help`` shows examples and all flags; ``megatron-ltd report`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("report")
