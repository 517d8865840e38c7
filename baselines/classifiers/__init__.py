"""The linear classifiers of the baselines."""
