"""What the prompt is compared with: a downstream model on the speech model's features (SUPERB), and
a linear classifier on unit n-grams.
"""

import pipeline  # noqa: F401  (first: it answers Ctrl-C while a script imports)
