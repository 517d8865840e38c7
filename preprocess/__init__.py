"""Stage 1: audio to ``file|units|labels``. A folder a downstream; ``speech2unit`` makes units."""
