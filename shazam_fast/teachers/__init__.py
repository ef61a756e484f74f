"""Foundation models by name."""
