"""Which probe runs next, and when: plan, budget, agreement of ranks, the probe loop."""

from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.plan import Feedback, Planner
from vllm_nfp.schedule.prober import Prober

__all__ = ["Budget", "Feedback", "Planner", "Prober"]
