"""Train a tokenizer on text: SentencePiece, or BERT's WordPiece.

``--help`` shows examples and all flags; ``megatron-ltd train-tokenizer`` is the same command.
"""

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("train-tokenizer")
