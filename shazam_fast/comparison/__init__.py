"""Fusion methods and baselines on one archive."""
