"""Merge indexed datasets made with the same tokenizer, such as the shards of preprocess_data.py.

``--help`` shows examples and all flags; ``megatron-ltd merge-datasets`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("merge-datasets")
