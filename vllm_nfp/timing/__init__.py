"""Clocks that mark moments in the serving stream and are read later, without waiting."""

from vllm_nfp.timing.clock import Clock, CudaClock, HostClock, Mark
from vllm_nfp.timing.periods import Periods
from vllm_nfp.timing.sampling import Sampler
from vllm_nfp.timing.series import RealSteps, rounded_context
from vllm_nfp.timing.steps import StepTimer, StepTimes

__all__ = [
    "Clock",
    "CudaClock",
    "HostClock",
    "Mark",
    "Periods",
    "RealSteps",
    "Sampler",
    "StepTimer",
    "StepTimes",
    "rounded_context",
]
