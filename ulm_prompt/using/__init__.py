"""Find a prompt, answer audio with a prompt, and share a prompt."""
