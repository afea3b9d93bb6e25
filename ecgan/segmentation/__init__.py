"""Segmenters: load, train, predict; the label filter."""
