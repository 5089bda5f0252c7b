"""Settings of vLLM's that were looked at: any other may be a reason not to probe.

A build between two releases, or a fork, may bear the number of a known release and have more. What
spreads a model over ranks and memory is listed here name by name, and so are the parts of the whole
configuration, since that is where features appear which run beside a step. Other parts have their
own checks: KV caches and attention by their kinds, connectors and executors by their names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from vllm_nfp.adapter import versions

SINCE = (0, 32)
"""Oldest release whose settings are listed."""
_PARTS = """
model_config cache_config parallel_config scheduler_config device_config load_config offload_config
attention_config aux_output_config engram_config mamba_config kernel_config lora_config
speculative_config watermark_config diffusion_config structured_outputs_config observability_config
logging_config quant_config compilation_config profiler_config kv_transfer_config kv_events_config
ec_transfer_config ec_manager_config reasoning_config additional_config instance_id
optimization_level performance_mode weight_transfer_config watchdog_config shutdown_timeout
"""
_PARALLEL = """
pipeline_parallel_size tensor_parallel_size prefill_context_parallel_size data_parallel_size
data_parallel_size_local data_parallel_rank data_parallel_rank_local data_parallel_master_ip
data_parallel_rpc_port dp_sync_interval data_parallel_master_port data_parallel_backend
data_parallel_external_lb data_parallel_hybrid_lb is_moe_model enable_hc_sp enable_expert_parallel
enable_batch_sharded_sampling enable_ep_weight_filter enable_eplb eplb_config
expert_placement_strategy all2all_backend max_parallel_loading_workers disable_custom_all_reduce
enable_shm_tensor_arena enable_elastic_ep elastic_ep_max_dp_size enable_dbo ubatch_size
dbo_decode_token_threshold dbo_prefill_token_threshold disable_nccl_for_dp_synchronization
ray_workers_use_nsight ray_runtime_env placement_group distributed_executor_backend worker_cls
worker_extension_cls master_addr master_port node_rank nnodes numa_bind numa_bind_nodes
numa_bind_cpus assigned_physical_gpu_ids distributed_timeout_seconds
cpu_distributed_timeout_seconds world_size rank _data_parallel_master_port_list _coord_store_port
decode_context_parallel_size dcp_kv_cache_interleave_size dcp_comm_backend dcp_q_replicate
cp_kv_cache_interleave_size _allow_auto_resolve_cp_interleave_size data_parallel_index
_api_process_count _api_process_rank enable_fault_tolerance fault_tolerance_config
"""
_OFFLOAD = "offload_backend uva prefetch"
KNOWN = {
    "": frozenset(_PARTS.split()),
    "parallel_config": frozenset(_PARALLEL.split()),
    "offload_config": frozenset(_OFFLOAD.split()),
}
"""Part of vLLM's configuration -> its fields (sources of 0.32.0 and 0.33.0, ``config/``)."""


def unknown_setting(config: Any) -> str | None:
    """The first setting that is switched on and is not known, by its place; None if none is."""
    return next(_unknown(config), None) if versions.is_since(SINCE) else None


def _unknown(config: Any) -> Iterator[str]:
    for part, known in KNOWN.items():
        owner = getattr(config, part) if part else config
        if not dataclasses.is_dataclass(owner):
            continue
        for field in dataclasses.fields(owner):
            if field.name not in known and getattr(owner, field.name) != _default(field):
                yield f"{part}.{field.name}" if part else field.name


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
