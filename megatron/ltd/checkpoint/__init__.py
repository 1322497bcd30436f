"""Checkpoints: files, saving, loading, and what a continued run must agree on."""
