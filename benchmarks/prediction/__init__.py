"""Predictions against recorded and public measurements, and the fits of their constants."""
