"""What scoring does on a GPU alone."""
