"""Stage 1: audio to ``file|units|labels``. One folder per downstream, and ``speech2unit``."""
