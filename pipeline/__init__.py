"""What every stage shares: the workspace's layout, the row format, configs, safe writing, errors
for people.
"""

import pipeline.errors  # noqa: F401  (first: it answers Ctrl-C while a script imports)
