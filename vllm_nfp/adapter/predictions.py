"""The predictor's and the idle-compute rule's answer for the served model on this device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vllm_nfp.principle import (
    ModelShape,
    Serving,
    Target,
    default_calibration,
    match_device,
    predict_cells,
    shape_from_config,
)
from vllm_nfp.results.snapshot import PredictionRow

logger = logging.getLogger("vllm.nfp")


def predict_rows(
    vllm_config: Any,
    device: torch.device,
    backends: Sequence[str],
    cells: Sequence[tuple[int, int]],
    epsilons: Sequence[float],
) -> tuple[PredictionRow, ...]:
    """Predictions for the cells; none, with the reason in the log, where there is no ground.

    A missing prediction is no fault: measurement goes on without it.

    Args:
        backends: vLLM's names of the attention backends; the first one's rules are taken.
    """
    if device.type != "cuda":
        return ()
    name = torch.cuda.get_device_name(device)
    hardware = match_device(name)
    if hardware is None:
        logger.info("vllm-nfp: no prediction: %s is not in the hardware catalogue", name)
        return ()
    target = Target(hardware, default_calibration(hardware.name))
    try:
        shape = shape_of_server(vllm_config)
        serving = replace(serving_of(vllm_config, backends), expert_tiles=expert_tiles_of(shape))
        rows = [
            row
            for batch_size, context in cells
            for row in predict_cells(
                shape, target, (batch_size,), (context,), tuple(epsilons), serving
            )
        ]
    except ValueError as error:
        logger.info("vllm-nfp: no prediction: %s", error)
        return ()
    return tuple(
        PredictionRow(
            str(row.module),
            row.batch_size,
            row.context,
            row.epsilon,
            row.nfp,
            row.idle_compute_nfp,
            row.limited_by,
        )
        for row in rows
    )


def shape_of_server(vllm_config: Any) -> ModelShape:
    """The served model's shape, split and stored as the server does it.

    Raises:
        ShapeError: if its family is unknown.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    eight_bit_cache = str(vllm_config.cache_config.cache_dtype).startswith("fp8")
    return shape_from_config(
        model.hf_config.to_dict(),
        weight_bits=8 if model.quantization == "fp8" else 16,
        kv_bits=8 if eight_bit_cache else None,
        tensor_parallel_size=parallel.tensor_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        expert_parallel=bool(parallel.enable_expert_parallel),
    )


def expert_tiles_of(shape: ModelShape) -> Mapping[int, Mapping[str, int]]:
    """Tiles of vLLM's tuned configuration file for these experts on this device, by tokens.

    Empty where vLLM has no such file and takes its default rule, or has moved the function.
    """
    if not shape.num_moe_layers:
        return {}
    try:
        from vllm.model_executor.layers.fused_moe.fused_moe import get_moe_configs
    except ImportError:
        return {}
    eight_bit = shape.quantization in ("fp8", "fp8_block")
    block = (128, 128) if shape.quantization == "fp8_block" else (None, None)
    width = shape.expert_gemms[-1].inputs
    found = get_moe_configs(shape.local_experts, width, "fp8_w8a8" if eight_bit else None, *block)
    return found or {}


def serving_of(vllm_config: Any, backends: Sequence[str]) -> Serving:
    """How the server runs its steps: backend and captured sizes."""
    compilation = vllm_config.compilation_config
    captured = bool(compilation.cudagraph_mode)
    sizes = tuple(sorted(compilation.cudagraph_capture_sizes or ())) if captured else ()
    if not backends:
        return Serving(capture_sizes=sizes)
    return Serving(attention_backend=backends[0], capture_sizes=sizes)
