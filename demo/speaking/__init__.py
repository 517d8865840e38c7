"""Speech that espeak-ng speaks for the demos."""
