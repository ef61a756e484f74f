"""One step of training the bare student in nine kernels and no other operation: see `fused`."""
