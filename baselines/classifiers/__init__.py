"""The downstream model, the features that it reads, and code that both baselines share."""
