"""What QuPath opens: patches and areas as polygons, probabilities as an image."""
