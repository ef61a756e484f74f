"""The demo: fusion on a real histology image."""
