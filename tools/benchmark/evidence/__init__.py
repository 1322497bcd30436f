"""The parts of ``tools/benchmark/evidence.py``: the plan of the runs, their records, figures, picture and page."""
