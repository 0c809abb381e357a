"""Typed recipes: their sections, how files and overrides become one, and what to say when they do not."""
