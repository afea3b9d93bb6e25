"""The Triton kernels of the operations."""
