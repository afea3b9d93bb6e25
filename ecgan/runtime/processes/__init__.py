"""Processes of one machine that belong to a training: its loader, its ranks, and their signals."""
