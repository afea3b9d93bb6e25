"""Files of a user's data set: which there are, what they belong to, and their pixels."""
