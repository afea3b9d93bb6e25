"""Fit a generator to photos with label maps."""
