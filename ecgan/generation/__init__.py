"""Label maps to a data set: plan, shards, resumption, workers."""
