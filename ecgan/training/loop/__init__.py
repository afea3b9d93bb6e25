"""The loop of a training, and what it changes."""
