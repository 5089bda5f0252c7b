"""What drafting costs: heads, prediction layers and draft models as vLLM runs them."""

from vllm_nfp.principle.drafter.drafter import Drafter, DrafterError
from vllm_nfp.principle.drafter.find import drafter_of
from vllm_nfp.principle.drafter.seconds import Drafting, drafting

__all__ = ["Drafter", "DrafterError", "Drafting", "drafter_of", "drafting"]
