"""Tables of images: folders, CSV files, slides, data sets."""
