"""Prompts put to use: from audio to answers."""
