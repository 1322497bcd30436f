"""The parts of ``tools/benchmark/evidence.py``: the plan of the runs, their records, and the report."""
