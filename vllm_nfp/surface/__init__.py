"""One cost surface: t(B, N, L) of the step and its modules, from prior and measurements.

Numbers in, numbers out: numpy, no torch, no vLLM. docs/surface.md describes it.
"""

from vllm_nfp.surface.answers import (
    CellAnswer,
    Questions,
    answers,
    block_of,
    questions,
)
from vllm_nfp.surface.chooser import Candidate, rank
from vllm_nfp.surface.conditioning import Conditioning
from vllm_nfp.surface.constants import GENERIC, QUANTIZED, RECORDED, recorded_for
from vllm_nfp.surface.cost_surface import CostSurface
from vllm_nfp.surface.decide import BoundaryAnswer, boundary
from vllm_nfp.surface.decisions import Concern, Decisions
from vllm_nfp.surface.kernel import Hyperparameters
from vllm_nfp.surface.observations import Baseline, Observations, Ratio, StepTime
from vllm_nfp.surface.pool import Pool
from vllm_nfp.surface.posterior import Posterior
from vllm_nfp.surface.prior import Prior, PriorCell, generic_prior, predicted_prior

__all__ = [
    "GENERIC",
    "QUANTIZED",
    "RECORDED",
    "Baseline",
    "BoundaryAnswer",
    "Candidate",
    "CellAnswer",
    "Concern",
    "Conditioning",
    "CostSurface",
    "Decisions",
    "Hyperparameters",
    "Observations",
    "Pool",
    "Posterior",
    "Prior",
    "PriorCell",
    "Questions",
    "Ratio",
    "StepTime",
    "answers",
    "block_of",
    "boundary",
    "generic_prior",
    "predicted_prior",
    "questions",
    "rank",
    "recorded_for",
]
