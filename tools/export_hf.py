"""Export a trained model to a folder that Hugging Face's libraries can load.

``--help`` shows examples and all flags; ``megatron-ltd export`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("export")
