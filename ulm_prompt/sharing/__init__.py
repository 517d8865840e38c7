"""Prompts as things to share: their records and pages."""
