"""One reader for each annotation tool, and one for the forms that Datumaro reads."""
