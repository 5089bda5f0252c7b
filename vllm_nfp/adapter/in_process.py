"""A vLLM engine in this process, for work without a server: its runner, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.runners import view_of
from vllm_nfp.config import ENV_VAR

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    ENV_VAR: "",  # a probe between the runs that are timed would be in their times
}


@contextmanager
def engine_in_process(model: Path, arguments: Mapping[str, Any]) -> Iterator[RunnerView]:
    """Start an engine with dummy weights and give the view of its model runner.

    Args:
        model: folder with a config.json.
        arguments: further arguments of ``vllm.LLM``.
    """
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        from vllm import LLM

        llm = LLM(
            model=str(model),
            load_format="dummy",
            skip_tokenizer_init=True,
            disable_log_stats=True,
            **arguments,
        )
        yield view_of(_worker_of(llm).model_runner)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _worker_of(llm: Any) -> Any:
    core = llm.llm_engine.engine_core.engine_core
    return core.model_executor.driver_worker.worker


def module_engine_arguments(
    *, max_model_len: int, max_num_seqs: int, max_tokens: int, kv_cache_bytes: int, on_gpu: bool
) -> dict[str, Any]:
    """Arguments of an engine whose modules are to be timed one by one.

    Nothing is compiled, which saves a minute, and two graphs are captured: with FULL graphs
    configured, attention splits its work as it does inside a server's graphs.
    """
    arguments: dict[str, Any] = {
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_tokens,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "enable_prefix_caching": False,
    }
    if not on_gpu:
        return {**arguments, "enforce_eager": True}
    return {
        **arguments,
        "gpu_memory_utilization": 0.05,
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": [1, 512],
        },
    }
