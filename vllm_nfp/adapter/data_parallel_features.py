"""What the probe does with data parallelism; part of the list of features."""

from __future__ import annotations

from typing import Any

from vllm_nfp.adapter.dummies import steps_together
from vllm_nfp.adapter.feature import Feature, Kind
from vllm_nfp.adapter.versions import Mode

KNOWN_ALL2ALL = ("allgather_reducescatter",)
"""How experts' tokens may travel between engines that are probed: all tokens to all ranks, in as
many rows as the engines say (``AgRsAll2AllManager`` in ``all2all.py``, sources of 0.29.0 to
0.33.0). It keeps nothing between steps. Other backends do."""


def _all2all(config: Any) -> str:
    return str(config.parallel_config.all2all_backend)


def _unknown_all2all(config: Any) -> bool:
    expert_parallel = bool(config.parallel_config.enable_expert_parallel)
    return expert_parallel and _all2all(config) not in KNOWN_ALL2ALL


def _elastic(config: Any) -> bool:
    return bool(config.parallel_config.enable_elastic_ep)


def under_ray(config: Any) -> bool:
    """Whether workers, or whole engines, are Ray's."""
    parallel = config.parallel_config
    return "ray" in (parallel.distributed_executor_backend, parallel.data_parallel_backend)


def _several(config: Any) -> bool:
    return int(config.parallel_config.data_parallel_size) > 1


def _experts_under_ray(config: Any) -> bool:
    return steps_together(config) and under_ray(config)


def _balanced_outside(config: Any) -> bool:
    return bool(config.parallel_config.data_parallel_external_lb)


def _balanced_by_nodes(config: Any) -> bool:
    return bool(config.parallel_config.data_parallel_hybrid_lb)


def _balanced_by_head(config: Any) -> bool:
    """One API server spreads the requests over engines on several nodes."""
    apart = _balanced_outside(config) or _balanced_by_nodes(config) or under_ray(config)
    parallel = config.parallel_config
    local, engines = parallel.data_parallel_size_local, parallel.data_parallel_size
    return bool(engines > 1 and local < engines and not apart)


DATA_PARALLEL = (
    Feature(
        "data parallelism of a dense model",
        Kind.PARALLEL,
        lambda c: _several(c) and not c.model_config.is_moe,
        Mode.ACTIVE,
        "each rank is an engine of its own, with its own label engine",
        flag="--data-parallel-size",
    ),
    Feature(
        "data parallelism with experts",
        Kind.PARALLEL,
        lambda c: steps_together(c) and not _unknown_all2all(c) and not _elastic(c),
        Mode.ACTIVE,
        "all ranks of all engines launch a pair before the same forward pass, dummy batches among "
        "them, or none does; each engine has a row",
        flag="--data-parallel-size",
        step="the wait for other engines as well; dummy batches are left out",
    ),
    Feature(
        "data parallelism over nodes, balanced by the first",
        Kind.PARALLEL,
        _balanced_by_head,
        Mode.ACTIVE,
        "each node takes the settings of its own command line; /metrics shows the engines of the "
        "first node",
        needs="start every node with the same --nfp flags, and headless ones with --nfp-output-dir "
        "as well",
        flag="--data-parallel-size-local, --headless, --data-parallel-start-rank",
    ),
    Feature(
        "data parallelism over nodes, balanced by each",
        Kind.PARALLEL,
        _balanced_by_nodes,
        Mode.ACTIVE,
        "each node takes the settings of its own command line; its /metrics shows its engines",
        needs="start every node with the same --nfp flags",
        flag="--data-parallel-hybrid-lb",
    ),
    Feature(
        "data parallelism, balanced from outside",
        Kind.PARALLEL,
        _balanced_outside,
        Mode.ACTIVE,
        "each server has one engine, takes the settings of its own command line and shows its "
        "engine on its /metrics",
        needs="start every server with the same --nfp flags",
        flag="--data-parallel-rank, --data-parallel-external-lb",
    ),
    Feature(
        "data parallelism with experts and another all-to-all backend",
        Kind.PARALLEL,
        lambda c: steps_together(c) and _unknown_all2all(c),
        Mode.PASSIVE,
        "--all2all-backend {} was not tried with a probe: data parallelism with experts is probed "
        f"with {' or '.join(KNOWN_ALL2ALL)}",
        value=_all2all,
        placeholder="NAME",
        flag="--all2all-backend",
        step="the wait for other engines as well; dummy batches are left out; each engine has a "
        "row",
    ),
    Feature(
        "data parallelism with experts under Ray",
        Kind.PARALLEL,
        _experts_under_ray,
        Mode.PASSIVE,
        "data parallelism with experts was not tried with a probe under Ray: use "
        "--data-parallel-backend mp and --distributed-executor-backend mp",
        flag="--data-parallel-backend ray",
        step="the wait for other engines as well; dummy batches are left out; each engine has a "
        "row",
    ),
    Feature(
        "elastic expert parallelism",
        Kind.PARALLEL,
        _elastic,
        Mode.PASSIVE,
        "ranks come and go, and take what a probe's CUDA graphs address with them: serve without "
        "--enable-elastic-ep",
        flag="--enable-elastic-ep",
        unpredicted="ranks that come and go",
    ),
)
"""All of them."""
