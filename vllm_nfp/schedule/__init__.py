"""Which probe runs next, and when: plan, budget, agreement of ranks, the probe loop."""

from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.plan import Feedback, Planner, Target
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.types import ProbeEngine

__all__ = ["Budget", "Feedback", "Planner", "ProbeEngine", "Prober", "Target"]
