"""Which probe runs next, and when: agenda, budget, agreement of ranks, the probe loop."""

from vllm_nfp.schedule.agenda import Agenda
from vllm_nfp.schedule.budget import Budget
from vllm_nfp.schedule.prober import Prober
from vllm_nfp.schedule.queue import Queue

__all__ = ["Agenda", "Budget", "Prober", "Queue"]
