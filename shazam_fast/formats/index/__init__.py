"""What opening learned of feature files, kept in the user's cache folder, so that only changed files are read again."""
