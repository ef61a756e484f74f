"""One step of training a student in few kernels and nothing else: see `fused`."""
