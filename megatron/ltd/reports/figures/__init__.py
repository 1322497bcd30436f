"""Figures of runs: what is drawn (axes, panels, thinned curves), and how matplotlib draws it."""
