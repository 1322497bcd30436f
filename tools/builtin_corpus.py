"""Write Python's standard library as a text corpus, split into a training and a held-out part.

``--help`` shows examples and all flags; ``megatron-ltd builtin-corpus`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("builtin-corpus")
