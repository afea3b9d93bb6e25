"""The networks. They take numbers and tensors: neither recipes nor data sets nor losses."""
