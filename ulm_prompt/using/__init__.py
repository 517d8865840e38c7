"""Find a prompt, answer audio with it, share it."""
