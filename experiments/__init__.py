"""Grids of runs: the paper's tables and the studies."""

import pipeline  # noqa: F401  (first: it answers Ctrl-C while a script imports)
