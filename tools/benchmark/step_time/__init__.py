"""The implementation of ``tools/benchmark/step_time.py``."""
