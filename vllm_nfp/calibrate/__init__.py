"""Calibrates a GPU: times kernels and fits the predictor's constants to them."""
