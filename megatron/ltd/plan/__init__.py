"""What a run will compute: its stages, totals, clock and learning rate. No torch."""
