"""Plots, pictures and GeoJSON files of scores."""
