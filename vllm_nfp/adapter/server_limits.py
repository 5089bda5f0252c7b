"""The limits and sizes of a server that decide which shapes can be probed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_nfp.adapter.dummies import engines_together


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of the scheduler, and sizes of the model."""

    max_context: int
    """--max-model-len, in tokens."""
    max_step_tokens: int
    """--max-num-batched-tokens."""
    max_batch_size: int
    """--max-num-seqs."""
    vocabulary: int
    """Token ids, and logits of a position."""
    logit_bytes: int
    hidden_size: int
    widest_layer: int
    """Outputs of the widest linear layer of one decoder layer, roughly; with data parallelism and
    experts, for the tokens of all engines, which meet in each engine's experts."""
    causal: bool
    """A position sees those before it; False: all of the block, as diffusion decodes."""

    def logits_bytes(self, tokens: int) -> int:
        """Bytes of the logits of so many positions."""
        return tokens * self.vocabulary * self.logit_bytes


def server_limits(vllm_config: Any) -> ServerLimits:
    """Those of a server, after vLLM has resolved its configuration."""
    model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    hidden = int(model.get_hidden_size())
    # A field of transformers' configurations, which some families lack.
    widest = int(getattr(model.hf_text_config, "intermediate_size", 0) or 4 * hidden)
    return ServerLimits(
        max_context=int(model.max_model_len),
        max_step_tokens=int(scheduler.max_num_batched_tokens),
        max_batch_size=int(scheduler.max_num_seqs),
        vocabulary=int(model.get_vocab_size()),
        logit_bytes=int(model.dtype.itemsize),
        hidden_size=hidden,
        widest_layer=engines_together(vllm_config) * widest,
        causal=not model.is_diffusion,
    )
