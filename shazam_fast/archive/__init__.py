"""FeatureArchive: open, align, annotate, write, convert."""
