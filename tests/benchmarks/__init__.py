"""What is measured rather than tested; `make bench` runs each bench_*.py. pytest collects none."""
