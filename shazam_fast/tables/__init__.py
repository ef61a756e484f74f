"""Tables of users and tools: cells, CSV and Excel files, names of slides."""
