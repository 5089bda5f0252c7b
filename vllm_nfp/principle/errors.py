"""What the predictor refuses."""

from __future__ import annotations


class PredictionError(ValueError):
    """A question that the predictor cannot answer; the message names the value."""
