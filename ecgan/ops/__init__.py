"""The heavy arithmetic: one function for each definition, independent of networks and data."""
