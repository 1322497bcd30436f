"""Sample indices on a disk: which process builds them, and whether those that are there are right."""
