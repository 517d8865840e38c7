"""From ``file|units|labels`` to accuracy: data, unit LM, prompts, decoding, scores."""

import os

# Before torch starts its threads: let those that wait sleep. Spinning ones make two threads much
# slower than one as soon as anything else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
