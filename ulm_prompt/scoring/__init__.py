"""Scores of sample files, and reports on them."""
