"""Which files of which tool lie below a path: teachers, slides, and what lies beside the features."""
