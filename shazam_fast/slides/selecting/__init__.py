"""Selection of patches: each slide is clustered by all teachers at once, and some of every cluster are drawn."""
