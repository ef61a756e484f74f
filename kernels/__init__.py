"""Every operation of the student: plain definitions in `reference`, fused forms beside them."""
