"""Baselines for the prompt: a downstream model on the speech encoder's features (SUPERB), and a
linear classifier on unit n-grams.
"""

import pipeline  # noqa: F401  (first: handles Ctrl-C during the imports below)
