"""Downstream experiments: segmenters trained with and without samples, and compared."""
