"""What is known of slides and patients: targets, folds of patients, metrics."""
