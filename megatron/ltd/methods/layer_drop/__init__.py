"""Progressive layer dropping: whole layers are skipped, with a probability that changes over the run."""
