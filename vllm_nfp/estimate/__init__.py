"""Samples to boundaries: pure numpy, no torch, no vLLM."""

from vllm_nfp.estimate.boundary import estimate_cell
from vllm_nfp.estimate.store import PairStore
from vllm_nfp.estimate.types import Boundary, CellEstimate, Curve, CurvePoint

__all__ = [
    "Boundary",
    "CellEstimate",
    "Curve",
    "CurvePoint",
    "PairStore",
    "estimate_cell",
]
