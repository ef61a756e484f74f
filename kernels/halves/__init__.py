"""Folded scoring on tensor cores: maps in two float16 parts, see `split`."""
