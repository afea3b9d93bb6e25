"""Data sets whose pictures lie in shards: tars and Parquet files, ours and those of others."""
