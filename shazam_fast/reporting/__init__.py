"""Pictures and GeoJSON of scores."""
