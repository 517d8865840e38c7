"""What stages 2 and 3 write: prompt text, verbalizer, binaries, the unit LM's text."""
