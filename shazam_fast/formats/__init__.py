"""File formats: where the rows of features lie in a file, and which columns lie with them."""
