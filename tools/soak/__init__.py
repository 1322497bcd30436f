"""The implementation of ``tools/soak.py``."""
