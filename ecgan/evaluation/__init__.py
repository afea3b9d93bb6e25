"""Measure samples against photos."""
