"""Models of slides: patches are encoded one by one, pooled by slide, and read by a linear head."""
