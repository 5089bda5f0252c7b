"""What the predictor knows of the served model on this device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vllm_nfp.adapter import support
from vllm_nfp.adapter.graph_rules import captured_graphs
from vllm_nfp.principle import ModelShape
from vllm_nfp.principle.live import (
    ExpertTiles,
    Ground,
    ServedModel,
    calibrated_target,
    ground_of,
    predict_served,
)
from vllm_nfp.types import Prediction


class NoGroundError(ValueError):
    """Nothing can be predicted for this server; the message says why."""


def served_ground(
    vllm_config: Any,
    device: torch.device,
    backends: Sequence[str],
    hardware_file: str | None = None,
) -> Ground:
    """What predictions for this server rest on.

    Args:
        backends: vLLM's names of the attention backends; the rules of the first one are used.
        hardware_file: with this device's constants; None: the built-in ones.

    Raises:
        NoGroundError: if the predictor does not know the device, the model, or what the server
            does with it, or if the hardware file is another device's.
    """
    unknown = support.unpredicted(vllm_config)
    if unknown is not None:
        raise NoGroundError(f"the predictor does not know {unknown}")
    if device.type != "cuda":
        raise NoGroundError("steps run on a CPU")
    name = torch.cuda.get_device_name(device)
    try:
        target = None if hardware_file is None else calibrated_target(Path(hardware_file), name)
        return ground_of(served_model(vllm_config, backends), name, expert_tiles_of, target)
    except ValueError as error:
        raise NoGroundError(str(error)) from error


def predict_rows(
    ground: Ground, cells: Sequence[tuple[int, int]], epsilons: Sequence[float]
) -> tuple[Prediction, ...]:
    """Predictions for the cells.

    Args:
        cells: (batch size, context).

    Raises:
        PredictionError: for a cell out of the predictor's bounds.
    """
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
        for row in predict_served(ground, cells, epsilons)
    )


def served_model(vllm_config: Any, backends: Sequence[str]) -> ServedModel:
    """The served model, split and stored as the server does it."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return ServedModel(
        config=model.hf_config.to_dict(),
        fp8_weights=model.quantization == "fp8",
        fp8_cache=str(vllm_config.cache_config.cache_dtype).startswith("fp8"),
        tensor_parallel_size=parallel.tensor_parallel_size,
        data_parallel_size=parallel.data_parallel_size,
        expert_parallel=bool(parallel.enable_expert_parallel),
        attention_backend=backends[0] if backends else None,
        graphs=captured_graphs(vllm_config),
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
