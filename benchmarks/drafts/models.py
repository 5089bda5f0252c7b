"""The engines of the draft length benchmark: sizes, and how they draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.drafts.plan import LONGEST, MAIN_ACCEPTANCE, Settings
from benchmarks.serving import shapes, talk
from benchmarks.serving.speculation import speculative_config
from vllm_nfp.adapter.engines import DUMMY_WEIGHTS, start_engine


def start(settings: Settings, out: Path) -> Any:
    """The ``vllm.LLM`` of the settings, in this process; its files go to the directory."""
    folder = shapes.write_model(out / "model", settings.shape, settings.layers)
    longest = 4096 if settings.tiny else 12288
    arguments: dict[str, Any] = {
        "kv_cache_memory_bytes": int(settings.kv_gib * (1 << 30)),
        "max_model_len": longest,
        "max_num_seqs": 128 if not settings.tiny else 8,
        "max_num_batched_tokens": 8192 if not settings.tiny else 4096,
        "enable_prefix_caching": True,
    }
    if settings.tiny:
        arguments["enforce_eager"] = True
    else:
        arguments["gpu_memory_utilization"] = 0.05
    if settings.speculates:
        arguments["speculative_config"] = speculation(settings, out / "draft")
        if settings.method in shapes.DRAFT_HEADS:
            prepare_head(settings.method)
    return start_engine(folder, {**DUMMY_WEIGHTS, "seed": 0, **arguments})


def speculation(settings: Settings, folder: Path) -> dict[str, Any]:
    """vLLM's speculative_config; a head's config.json is written to the directory."""
    head = None
    if settings.method in shapes.DRAFT_HEADS:
        head = shapes.write_draft_head(folder, settings.shape, settings.method, settings.layers)
    # On a CPU vLLM has no lookup on the GPU, and its sampler no synthetic acceptance.
    method = "ngram" if settings.tiny and head is None else settings.method
    acceptance = None if settings.tiny else [MAIN_ACCEPTANCE] * LONGEST
    config = speculative_config(method, LONGEST, head, acceptance)
    return {**config, "num_speculative_tokens_per_batch_size": [[1, 1, 3]]}


def prepare_head(method: str) -> None:
    """Before an engine starts: patch its EAGLE heads so that they draft as trained ones do.

    An EAGLE-3 head has an LM head of its own. vLLM detects it by the names of loaded weights, and
    dummy weights have none: it would use the target's, with nearly five times the tokens.
    """
    from vllm.model_executor.models.llama_eagle import EagleLlamaForCausalLM
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

    if method == "eagle3":
        talk.listen(Eagle3LlamaForCausalLM)
        Eagle3LlamaForCausalLM.has_own_lm_head = True
    else:
        talk.listen(EagleLlamaForCausalLM)


def drafter(runner: Any) -> Any:
    """The drafter of a vLLM model runner, None without one; the runners name it differently."""
    found = getattr(runner, "speculator", None)
    return getattr(runner, "drafter", None) if found is None else found
