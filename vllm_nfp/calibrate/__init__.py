"""Measures what kernels really reach on the device at hand."""
