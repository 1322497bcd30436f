"""One HTML page about a run: its flags, what it did, its results, and what was unusual."""
