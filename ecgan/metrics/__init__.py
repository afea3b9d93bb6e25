"""Numbers from arrays: distances of distributions, IoU, intervals. No files, no networks."""
