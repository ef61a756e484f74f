"""One step of training the bare student in nine kernels, ten with heads of teachers, and nothing else: see `fused`."""
