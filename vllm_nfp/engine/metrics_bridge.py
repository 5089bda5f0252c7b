"""Brings the workers' results to the server's own /metrics, for any number of API servers."""

from __future__ import annotations

import logging
import sys
from typing import Any

from vllm_nfp.config import ProbeConfig
from vllm_nfp.engine.patch import PatchSet
from vllm_nfp.metrics.collector import NfpCollector

logger = logging.getLogger("vllm.nfp")

_SOURCE = "vllm.v1.metrics.prometheus"
_USER = "vllm.entrypoints.serve.instrumentator.metrics"
_FUNCTION = "get_prometheus_registry"


def install(patches: PatchSet, config: ProbeConfig) -> None:
    """Let every registry that vLLM serves on /metrics carry the NFP collector.

    vLLM makes one registry in a server that is alone and one for each of several API servers;
    both come from one function, which another module may have imported by name already.
    """
    if config.run_dir is None:
        return
    import vllm.v1.metrics.prometheus

    run_dir = config.run_dir

    def with_collector(original: Any) -> Any:
        def wrapped() -> Any:
            registry = original()
            _register(registry, run_dir)
            return registry

        return wrapped

    patches.wrap(vllm.v1.metrics.prometheus, _FUNCTION, with_collector)
    user = sys.modules.get(_USER)
    if user is not None:
        patches.wrap(user, _FUNCTION, with_collector)


def _register(registry: Any, run_dir: str) -> None:
    """Add the collector once; a registry that refuses it still serves vLLM's own metrics."""
    if getattr(registry, "_nfp_collector", None) is not None:
        return
    try:
        collector = NfpCollector(run_dir)
        registry.register(collector)
        registry._nfp_collector = collector
    except Exception:
        logger.exception("vllm-nfp: /metrics will not show the probe's results")
