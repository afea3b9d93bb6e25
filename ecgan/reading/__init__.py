"""What is opened of files that somebody else may have written, in one place for all readers."""
