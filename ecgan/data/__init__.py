"""Photos and label maps in, samples out."""
