"""The parts of ``tools/benchmark/real_text.py``: recipe, corpus, runs and report of the comparison on real text."""
