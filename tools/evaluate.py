"""Score a trained model on lm-eval's tasks.

``--help`` shows examples and all flags; ``megatron-ltd evaluate`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("evaluate")
