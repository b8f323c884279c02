"""Continual learning with sparse networks."""
