"""Discriminators: of patches (the paper's), and of segmentations with one class more: made."""
