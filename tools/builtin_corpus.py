"""Write Python's standard library as a text corpus, split into a training and a held-out part.

    python tools/builtin_corpus.py --output-dir data/corpus

The implementation is in ``megatron.ltd.commands.builtin_corpus``, which ``megatron-ltd builtin-corpus`` runs too.
"""

from __future__ import annotations

from megatron.ltd.commands import run_script

if __name__ == "__main__":
    run_script("builtin-corpus")
