"""The error of a fit that is refused, and the figures of how well constants fit curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vllm_nfp.principle.terms import FloatArray


class FitError(ValueError):
    """No constants can be fitted to the curves; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class FitErrors:
    """Deviation of predicted from measured times, as logarithms: 0.05 is about 5 %."""

    rms_log_error: float
    """Root mean square of log t(N), predicted over measured."""
    rms_log_ratio_error: float
    """The same of log t(N) / t(1), which NFP depends on."""


def fit_errors(pairs: Iterable[tuple[FloatArray, FloatArray]]) -> FitErrors:
    """Errors over curves, given as (predicted, measured) seconds at N ascending from 1.

    Raises:
        FitError: without curves.
    """
    levels = [np.log(predicted / measured) for predicted, measured in pairs]
    if not levels:
        raise FitError("there is no curve to compare with")
    ratios = [level - level[0] for level in levels]
    return FitErrors(_root_mean_square(levels), _root_mean_square(ratios))


def check_curve(what: str, positions: FloatArray, seconds: FloatArray, least: int) -> None:
    """Check that points form a curve.

    Raises:
        FitError: unless there are ``least`` points or more, at N ascending from 1, with times that
            are finite and above 0.
    """
    if len(positions) != len(seconds) or len(positions) < least:
        raise FitError(f"{what} needs a time at {least} or more N")
    if positions[0] != 1 or not np.all(np.diff(positions) > 0):
        raise FitError(f"{what}: N must ascend from 1")
    if not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise FitError(f"{what}: a time is not finite and above 0")


def _root_mean_square(errors: list[FloatArray]) -> float:
    return float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))
