"""Stage 1: audio to ``file|units|labels``. One folder per downstream task; ``speech2unit`` turns
audio into units.
"""
