"""Code that all stages share: workspace paths, row format, configs, atomic writes, error lines."""

import os

import pipeline.errors  # noqa: F401  (first: it handles Ctrl-C while a script imports)

# On Apple's GPU: the CPU computes what torch cannot compute there. torch reads this when imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
