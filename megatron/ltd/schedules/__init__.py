"""How much each step computes: kept tokens, keep probabilities, batch sizes, and the plan of a step. No torch."""
