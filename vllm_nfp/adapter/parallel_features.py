"""What the probe does where several ranks or GPUs share a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.data_parallel_features import DATA_PARALLEL, under_ray
from vllm_nfp.adapter.dummies import steps_together
from vllm_nfp.adapter.feature import Feature, Kind
from vllm_nfp.adapter.versions import Mode


def _size(name: str) -> Callable[[Any], int]:
    return lambda config: int(getattr(config.parallel_config, name))


def _above_one(name: str) -> Callable[[Any], bool]:
    return lambda config: _size(name)(config) > 1


def _executor(config: Any) -> object:
    executor = config.parallel_config.distributed_executor_backend
    return executor.__name__ if isinstance(executor, type) else executor


def _foreign_executor(config: Any) -> bool:
    several = steps_together(config) or config.parallel_config.tensor_parallel_size > 1
    return several and _executor(config) not in (None, "mp", "uni", "ray")


PARALLEL = (
    Feature(
        "tensor parallelism",
        Kind.PARALLEL,
        lambda c: _above_one("tensor_parallel_size")(c) and not _foreign_executor(c),
        Mode.ACTIVE,
        "all ranks launch a pair before the same step, or none does",
        flag="--tensor-parallel-size",
    ),
    Feature(
        "expert parallelism over tensor-parallel ranks",
        Kind.PARALLEL,
        lambda c: bool(c.parallel_config.enable_expert_parallel),
        Mode.ACTIVE,
        "as tensor parallelism",
        flag="--enable-expert-parallel",
    ),
    Feature(
        "workers under Ray",
        Kind.PARALLEL,
        lambda c: under_ray(c) and not steps_together(c),
        Mode.ACTIVE,
        "vLLM copies the settings to Ray's workers and engines",
        needs="install vllm-nfp on every node of the Ray cluster",
        flag="--distributed-executor-backend ray, --data-parallel-backend ray",
    ),
    Feature(
        "several nodes",
        Kind.PARALLEL,
        _above_one("nnodes"),
        Mode.ACTIVE,
        "each node takes the settings of its own command line; if they differ, nothing is probed",
        needs="start every node with the same --nfp flags",
        flag="--nnodes",
    ),
    *DATA_PARALLEL,
    Feature(
        "pipeline parallelism",
        Kind.PARALLEL,
        _above_one("pipeline_parallel_size"),
        Mode.PASSIVE,
        "--pipeline-parallel-size {} is not supported (a probe would need every stage): "
        "probing needs 1",
        value=_size("pipeline_parallel_size"),
        flag="--pipeline-parallel-size",
        step="the last stage's part, and the wait for earlier stages; the first stage's where "
        "stages are on several hosts",
        unpredicted="pipeline stages",
    ),
    Feature(
        "decode context parallelism",
        Kind.PARALLEL,
        _above_one("decode_context_parallel_size"),
        Mode.PASSIVE,
        "--decode-context-parallel-size {} is not supported (a probe does not split its context "
        "over ranks): probing needs 1",
        value=_size("decode_context_parallel_size"),
        flag="--decode-context-parallel-size",
        step="that of the first rank",
        unpredicted="a context split over ranks",
    ),
    Feature(
        "prefill context parallelism",
        Kind.PARALLEL,
        _above_one("prefill_context_parallel_size"),
        Mode.PASSIVE,
        "--prefill-context-parallel-size {} is not supported (a probe does not split its context "
        "over ranks): probing needs 1",
        value=_size("prefill_context_parallel_size"),
        flag="--prefill-context-parallel-size",
        step="that of the first rank",
        unpredicted="a context split over ranks",
    ),
    Feature(
        "several ranks with another executor",
        Kind.PARALLEL,
        _foreign_executor,
        Mode.PASSIVE,
        "several ranks with --distributed-executor-backend {} are not supported: use mp",
        value=_executor,
        placeholder="external_launcher",
        flag="--distributed-executor-backend external_launcher",
    ),
    Feature(
        "dual batch overlap",
        Kind.PARALLEL,
        lambda c: bool(c.parallel_config.use_ubatching),
        Mode.PASSIVE,
        "dual batch overlap is not supported: serve without --enable-dbo",
        flag="--enable-dbo",
        unpredicted="dual batch overlap",
    ),
    Feature(
        "expert load balancing",
        Kind.PARALLEL,
        lambda c: bool(c.parallel_config.enable_eplb) and versions.is_since(versions.EXPERT_LOADS),
        Mode.ACTIVE,
        "a probe's tokens are not counted among the experts' loads",
        flag="--enable-eplb",
        step="rebalancing as well, which the median leaves out",
        unpredicted="balanced experts",
    ),
    Feature(
        "expert load balancing, before vLLM 0.32",
        Kind.PARALLEL,
        lambda c: (
            bool(c.parallel_config.enable_eplb) and not versions.is_since(versions.EXPERT_LOADS)
        ),
        Mode.PASSIVE,
        "probes would distort the expert load statistics, which they leave alone on vLLM 0.32 or "
        "later: upgrade vLLM, or serve without --enable-eplb",
        flag="--enable-eplb",
        step="rebalancing as well, which the median leaves out",
        unpredicted="balanced experts",
    ),
)
"""Those of parallelism."""
