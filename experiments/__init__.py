"""Grids of runs: the paper's tables and the studies."""

import pipeline  # noqa: F401  (first: handles Ctrl-C during the imports below)
