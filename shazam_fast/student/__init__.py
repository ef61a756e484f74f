"""The network, its folded form, its files; knows no archive."""
