"""One file per operation, and the only choice of backend."""
