"""Continue a text with a trained model.

``--help`` shows examples and all flags; ``megatron-ltd generate`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("generate")
