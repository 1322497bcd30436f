"""The implementation of ``tools/benchmark/gpu.py``."""
