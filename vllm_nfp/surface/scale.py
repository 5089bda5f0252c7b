"""How large this model's errors are, compared with those of other models: one factor a part."""

from __future__ import annotations

import numpy as np

from vllm_nfp.surface.parts import FloatArray

FACTORS = np.exp(np.linspace(np.log(0.35), np.log(4.0), 9))
"""On the standard deviation of a part's errors."""
SPREAD = 0.6
"""Standard deviation of the log factor over models."""
UNKNOWN = float(np.exp(SPREAD**2))
"""Factor for a model of which no error is known: the root of the mean square."""


def log_evidence(kernel: FloatArray, noise: FloatArray, errors: FloatArray) -> tuple[float, float]:
    """The factor on the standard deviation given the errors, and log p(errors).

    The factor is the root of the mean square over what is likely, so that intervals are wide
    enough while few errors are known.

    Args:
        kernel: covariance of the errors at factor 1, shape [n, n].
        noise: covariance of the noise, diagonal, the same shape.
        errors: shape [n].
    """
    deviations = np.sqrt(np.diag(noise))
    whitened = kernel / deviations[:, None] / deviations[None, :]
    values, vectors = np.linalg.eigh(whitened)
    along = (vectors.T @ (errors / deviations)) ** 2
    variances = 1.0 + FACTORS[:, None] ** 2 * np.maximum(values, 0.0)[None, :]
    fit = -0.5 * (along[None, :] / variances + np.log(variances)).sum(axis=1)
    logs = np.log(FACTORS)
    chances = fit - 0.5 * (logs / SPREAD) ** 2
    top = float(chances.max())
    weights = np.exp(chances - top)
    total = float(np.log(weights.sum() / np.exp(-0.5 * (logs / SPREAD) ** 2).sum()) + top)
    total -= float(np.log(deviations).sum() + 0.5 * len(errors) * np.log(2.0 * np.pi))
    return float(np.sqrt(weights @ FACTORS**2 / weights.sum())), total
