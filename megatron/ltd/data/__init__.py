"""Data: from text files to indexed tokens, and from indexed tokens to the microbatches of a run."""
