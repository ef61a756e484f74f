"""An archive to a student."""
