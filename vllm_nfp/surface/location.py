"""The pseudo-median of a small sample."""

from __future__ import annotations

import numpy as np

from vllm_nfp.surface.parts import FloatArray


def pseudo_median(sample: FloatArray) -> float:
    """The Hodges-Lehmann estimate: the median of the means of all pairs, each with itself too.

    Hodges and Lehmann, "Estimates of location based on rank tests", Annals of Mathematical
    Statistics 34 (1963). An outlier of any size moves it by a bounded amount, and it needs two
    thirds of the samples that a median needs.
    """
    rows, columns = np.triu_indices(len(sample))
    return float(np.median((sample[rows] + sample[columns]) * 0.5))
