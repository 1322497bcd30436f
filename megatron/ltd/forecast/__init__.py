"""What a run will cost: the memory, time and answers of ``--plan``."""
