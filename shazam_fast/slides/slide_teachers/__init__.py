"""Slide-level teachers: foundation models that give one feature per slide (GigaPath's, TITAN, PRISM, CHIEF)."""
