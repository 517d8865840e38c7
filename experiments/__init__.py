"""Grids of runs: the paper's tables and the studies."""
