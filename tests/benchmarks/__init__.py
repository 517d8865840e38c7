"""Benchmarks. ``make bench`` runs every bench_*.py; pytest does not collect them."""
