"""Compare runs on lm-eval's tasks: one table with standard errors and the average, in Markdown or LaTeX.

``--help`` shows examples and all flags; ``megatron-ltd compare-runs`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("compare-runs")
