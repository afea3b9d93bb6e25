"""The data sets that we write: records, formats, readers, checks."""
