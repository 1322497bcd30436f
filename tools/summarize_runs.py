"""Compare runs: a table of loss, cost and savings of each, and their loss curves.

``--help`` shows examples and all flags; ``megatron-ltd summarize-runs`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("summarize-runs")
