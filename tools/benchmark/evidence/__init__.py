"""The implementation of ``tools/benchmark/evidence.py``: the plan of the runs, records, results, figure and page."""
