"""The actions of preprocess/runner.py, and what they share."""
