"""What is tried, one module for each kind of input."""
