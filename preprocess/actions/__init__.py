"""What preprocess/runner.py does: one file an action."""
