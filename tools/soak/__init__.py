"""The soak test; its command is ``tools/soak.py``."""
