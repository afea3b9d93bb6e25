"""Everything once, on toy scenes drawn by code."""
