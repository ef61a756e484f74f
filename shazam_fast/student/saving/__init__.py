"""A student's directory: its tensors and documents."""
