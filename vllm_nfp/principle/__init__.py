"""Predicted near-free parallelism: model shapes, known devices, kernel models, no GPU needed."""

from vllm_nfp.principle.hardware import (
    CATALOGUE,
    Hardware,
    HardwareError,
    hardware_by_name,
    match_device,
)
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.idle_compute import (
    MODULES,
    Module,
    PredictionError,
    idle_compute_nfp,
    modules_of,
)
from vllm_nfp.principle.kernels import UNCALIBRATED, Efficiency, Limit
from vllm_nfp.principle.model_files import load_config
from vllm_nfp.principle.predict import Prediction, Row, predict, predict_cells
from vllm_nfp.principle.shape import Decoding, LatentAttention, ModelShape, ShapeError

__all__ = [
    "CATALOGUE",
    "MODULES",
    "UNCALIBRATED",
    "Decoding",
    "Efficiency",
    "Hardware",
    "HardwareError",
    "LatentAttention",
    "Limit",
    "ModelShape",
    "Module",
    "Prediction",
    "PredictionError",
    "Row",
    "ShapeError",
    "hardware_by_name",
    "idle_compute_nfp",
    "load_config",
    "match_device",
    "modules_of",
    "predict",
    "predict_cells",
    "shape_from_config",
]
