"""Images and teachers to an archive."""
