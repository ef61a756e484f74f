"""Students in files that other programs run."""
