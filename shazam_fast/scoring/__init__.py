"""A student and an archive to predictions and metrics."""
