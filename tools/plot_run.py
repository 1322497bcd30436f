"""Plot runs: loss, learning rate, kept tokens, saved FLOPs and task scores, over steps, tokens, FLOPs or seconds.

``--help`` shows examples and all flags; ``megatron-ltd plot-run`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("plot-run")
