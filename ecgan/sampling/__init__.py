"""Layouts and styles to pixels, on one device."""
