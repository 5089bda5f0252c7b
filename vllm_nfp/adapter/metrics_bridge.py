"""Brings the workers' results to the server's own /metrics, for any number of API servers."""

from __future__ import annotations

import itertools
import logging
import os
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry

from vllm_nfp.adapter import targets, versions
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ProbeConfig
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.results.snapshot import Snapshot, engine_file, write_snapshot
from vllm_nfp.types import State

logger = logging.getLogger("vllm.nfp")


def install(patches: PatchSet, config: ProbeConfig) -> None:
    """Let whatever vLLM serves on /metrics carry the NFP collector.

    A server that is alone has one registry, from a function that another module may have imported
    by name already. With several API servers the answer to a scrape comes from registries made
    for that scrape alone, each with a ``MultiProcessCollector`` and nothing else; there the
    collector joins that one's results.
    """
    if config.run_dir is None:
        return
    joined: set[CollectorRegistry] = set()

    def with_collector(original: Any) -> Any:
        def wrapped() -> Any:
            registry = original()
            _join(patches, registry, joined, config)
            return registry

        return wrapped

    patches.wrap(targets.GET_REGISTRY, with_collector)
    if targets.GET_REGISTRY_BY_NAME.is_imported:
        patches.wrap(targets.GET_REGISTRY_BY_NAME, with_collector)


def report_unhooked(config: ProbeConfig, error: Exception) -> None:
    """Let /metrics say that the probe is off in a vLLM whose workers cannot be observed.

    No worker will write a results file, so this process writes the first engine's.
    """
    if config.run_dir is None:
        return
    version = versions.installed_version() or "of unknown version"
    reason = f"vLLM {version} cannot be hooked: {error}"
    snapshot = Snapshot("", "0", State.DISABLED, reason=reason)
    try:
        write_snapshot(engine_file(config.run_dir, "0"), snapshot)
    except OSError:
        logger.exception("vllm-nfp: /metrics will not show that the probe is off")


def _join(
    patches: PatchSet,
    registry: CollectorRegistry,
    joined: set[CollectorRegistry],
    config: ProbeConfig,
) -> None:
    """Add the collector once; where that fails vLLM's own metrics are served all the same."""
    assert config.run_dir is not None, "install() returned without it"
    try:
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            _join_multiprocess(patches, NfpCollector(config.run_dir, config.draft_acceptance))
        elif registry not in joined:
            collector = NfpCollector(config.run_dir, config.draft_acceptance, registry)
            registry.register(collector)
            joined.add(registry)
            patches.on_restore(lambda: _leave(registry, collector))
    except Exception:
        logger.exception("vllm-nfp: /metrics will not show the probe's results")


def _leave(registry: CollectorRegistry, collector: NfpCollector) -> None:
    with suppress(KeyError):  # somebody else has taken it out
        registry.unregister(collector)


def _join_multiprocess(patches: PatchSet, collector: NfpCollector) -> None:
    def with_ours(original: Any) -> Any:
        def collect(self: Any) -> Any:
            metrics = list(original(self))
            return itertools.chain(metrics, collector.collect_beside(metrics))

        return collect

    patches.wrap(targets.COLLECT, with_ours)
