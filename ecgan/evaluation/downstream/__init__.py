"""What samples are worth to a segmenter that is trained with them."""
