"""From a path to extents and columns; no policy."""
