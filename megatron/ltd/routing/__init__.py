"""Which tokens a layer keeps, how they leave and return, and which part of the sequence a process holds."""
