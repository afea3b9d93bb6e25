"""Processes, devices, storage: what the other packages run on."""
