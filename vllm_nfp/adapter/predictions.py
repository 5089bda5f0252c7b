"""The predictor's and the idle-compute rule's answer for the served model on this device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from vllm_nfp.principle import ModelShape
from vllm_nfp.principle.live import ExpertTiles, ServedModel, predict_served
from vllm_nfp.types import Prediction

logger = logging.getLogger("vllm.nfp")


def predict_rows(
    vllm_config: Any,
    device: torch.device,
    backends: Sequence[str],
    cells: Sequence[tuple[int, int]],
    epsilons: Sequence[float],
) -> tuple[Prediction, ...]:
    """Predictions for the cells; empty where nothing can be predicted, with the reason in the log.

    A missing prediction is no fault: measurement goes on without it.

    Args:
        backends: vLLM's names of the attention backends; the rules of the first one are used.
        cells: (batch size, context).
    """
    if device.type != "cuda":
        return ()
    name = torch.cuda.get_device_name(device)
    try:
        rows = predict_served(
            served_model(vllm_config, backends), name, cells, epsilons, expert_tiles_of
        )
    except ValueError as error:
        logger.info("vllm-nfp: no prediction: %s", error)
        return ()
    return tuple(
        Prediction(
            row.module,
            row.batch_size,
            row.context,
            row.epsilon,
            row.nfp,
            row.idle_compute_nfp,
            row.limited_by,
        )
        for row in rows
    )


def served_model(vllm_config: Any, backends: Sequence[str]) -> ServedModel:
    """The served model, split and stored as the server does it."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    compilation = vllm_config.compilation_config
    captured = bool(compilation.cudagraph_mode)
    return ServedModel(
        config=model.hf_config.to_dict(),
        fp8_weights=model.quantization == "fp8",
        fp8_cache=str(vllm_config.cache_config.cache_dtype).startswith("fp8"),
        tensor_parallel_size=parallel.tensor_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        expert_parallel=bool(parallel.enable_expert_parallel),
        attention_backend=backends[0] if backends else None,
        capture_sizes=(
            tuple(sorted(compilation.cudagraph_capture_sizes or ())) if captured else ()
        ),
    )


def expert_tiles_of(shape: ModelShape) -> ExpertTiles:
    """Tiles of vLLM's tuned configuration file for these experts on this device, by tokens.

    Empty where vLLM has no such file and uses its default rule, or has moved the function.
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
