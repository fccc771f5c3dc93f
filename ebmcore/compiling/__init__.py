"""Transitions of a sampler as compiled graphs."""
