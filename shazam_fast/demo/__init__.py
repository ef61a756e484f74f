"""The embedded default: fusion on a real histology image."""
