"""What every stage shares: the workspace's layout, the row format, configs, safe writing, errors
for people.
"""

import os

import pipeline.errors  # noqa: F401  (first: it answers Ctrl-C while a script imports)

# Apple's GPU: the CPU computes what torch lacks there (torch reads this when it is imported)
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
