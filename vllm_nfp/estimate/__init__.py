"""Samples to boundaries: pure numpy, no torch, no vLLM."""

from vllm_nfp.estimate.boundary import estimate_cell
from vllm_nfp.estimate.store import PairStore
from vllm_nfp.estimate.types import CellEstimate

__all__ = ["CellEstimate", "PairStore", "estimate_cell"]
