"""From rows ``file|units|labels`` to accuracy: data, unit LM, prompts, decoding, scores."""

import os

# Waiting threads sleep instead of spinning: spinning makes two threads much slower than one if
# anything else runs on the machine. torch reads this when it starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
