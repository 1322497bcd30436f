"""Which tokens a layer keeps, how they are gathered and scattered, and which part of the sequence a process holds."""
