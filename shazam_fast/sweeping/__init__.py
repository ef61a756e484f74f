"""Many students from one archive in one pass."""
