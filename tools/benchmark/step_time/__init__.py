"""The step-time benchmark; its command is ``tools/benchmark/step_time.py``."""
