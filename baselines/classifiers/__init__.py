"""The linear classifiers that the prompts are compared with."""
