"""Audio to units: reading it (``audio``), features by name (``features``), ``kmeans``."""
