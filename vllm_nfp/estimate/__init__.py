"""Samples to boundaries: pure numpy, no torch, no vLLM."""

from vllm_nfp.estimate.boundary import estimate_cell
from vllm_nfp.estimate.store import PairStore
from vllm_nfp.estimate.types import Boundary, Cell, CellEstimate, Curve, CurvePoint, Pair

__all__ = [
    "Boundary",
    "Cell",
    "CellEstimate",
    "Curve",
    "CurvePoint",
    "Pair",
    "PairStore",
    "estimate_cell",
]
