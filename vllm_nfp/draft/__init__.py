"""Draft lengths from step times and acceptance: pure Python, no torch, no vLLM."""

from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, constant, from_rates
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand, DraftCost
from vllm_nfp.draft.length import expected_tokens
from vllm_nfp.draft.rows import Schedule, ScheduleRange, ScheduleRow
from vllm_nfp.draft.schedule import make_schedule

__all__ = [
    "Acceptance",
    "AcceptanceError",
    "Demand",
    "DraftCost",
    "Schedule",
    "ScheduleRange",
    "ScheduleRow",
    "StepCurve",
    "constant",
    "expected_tokens",
    "from_rates",
    "make_schedule",
]
