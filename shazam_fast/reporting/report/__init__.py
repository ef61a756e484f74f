"""The report: one HTML file on a student, on its teachers, and on a comparison of methods."""
