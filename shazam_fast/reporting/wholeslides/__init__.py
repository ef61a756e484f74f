"""Pictures of whole slides: where their students looked, the patches that weighed most, survival by risk."""
