"""The predictor's and the idle-compute rule's answer for the served model on this device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from vllm_nfp.metrics.snapshot import PredictionRow
from vllm_nfp.principle import (
    Target,
    default_calibration,
    match_device,
    predict_cells,
    shape_from_config,
)

logger = logging.getLogger("vllm.nfp")


def predict_rows(
    vllm_config: Any,
    device: torch.device,
    cells: Sequence[tuple[int, int]],
    epsilons: Sequence[float],
) -> tuple[PredictionRow, ...]:
    """Predictions for the cells; none, with the reason in the log, where there is no ground.

    A missing prediction is no fault: measurement goes on without it.
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
        shape = shape_from_config(
            vllm_config.model_config.hf_config.to_dict(),
            tensor_parallel_size=vllm_config.parallel_config.tensor_parallel_size,
        )
        rows = [
            row
            for batch_size, context in cells
            for row in predict_cells(shape, target, (batch_size,), (context,), tuple(epsilons))
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
