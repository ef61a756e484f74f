"""Labels, splits and patients of patches: from tables, mappings and arrays to columns."""
