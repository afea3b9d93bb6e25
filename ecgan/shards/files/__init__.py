"""Files of a data set: their names, and bounded readers of tars and Parquet files."""
