"""Convert text to an indexed dataset of tokens for training.

``--help`` shows examples and all flags; ``megatron-ltd preprocess`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("preprocess")
