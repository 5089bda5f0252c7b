"""Which of vLLM's schedulers can have their draft lengths controlled."""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.draft_lengths import METHODS
from vllm_nfp.adapter.drafts_asked import YIELDS
from vllm_nfp.adapter.verification import verifies_adaptively
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.draft.methods import TABLE_NEEDS_V2


def refusal(scheduler: Any) -> str | None:
    """Why this scheduler's draft lengths cannot be controlled; None if they can."""
    release = versions.decide(versions.installed_version())
    if release.mode is not Mode.ACTIVE:
        return f"{release.reason}; nor are draft lengths controlled there"
    config = scheduler.vllm_config
    speculation = config.speculative_config
    if speculation is None or verifies_adaptively(speculation):
        return YIELDS if speculation else "the server drafts nothing: add --speculative-config"
    if scheduler.dynamic_sd_lookup is None:
        return (
            "no table of draft lengths is configured, or vLLM has dropped it (as under data "
            "parallelism): give num_speculative_tokens_per_batch_size in --speculative-config"
        )
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline parallelism is not supported: several steps are under way at once"
    return _method_refusal(config)


def _method_refusal(config: Any) -> str | None:
    method = config.speculative_config.method
    if method not in METHODS:
        return (
            f"the draft method {method!r} is not known to follow a length that changes: known are "
            f"{', '.join(METHODS)}"
        )
    if method in TABLE_NEEDS_V2 and not config.use_v2_model_runner:
        return (
            f"the V1 model runner stops when the draft length of {method} changes: serve with "
            f"VLLM_USE_V2_MODEL_RUNNER=1, or with method ngram"
        )
    return None


def known_method(speculation: Any) -> str:
    """How drafts are made; empty for an unknown method, which must not become a label's value."""
    return speculation.method if speculation and speculation.method in METHODS else ""


def widest_graph(vllm_config: Any) -> int | None:
    """Tokens of the widest step that vLLM has captured; None if it captures none."""
    compilation = vllm_config.compilation_config
    sizes = compilation.cudagraph_capture_sizes
    return max(sizes) if sizes and compilation.cudagraph_mode else None
