"""Attacks and faults: what a stranger sends, and what a machine does, tried by the hundred.

``python -m tests.attacks`` makes them from a seed and prints the table of docs/reliability.md.
"""
