"""Recipes, and the call of fairseq's trainer."""
