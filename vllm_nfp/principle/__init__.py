"""Predicted near-free parallelism: model shapes, known devices, kernel models, no GPU needed."""

from vllm_nfp.principle.attention import ATTENTION_BACKENDS
from vllm_nfp.principle.boundary import Boundary
from vllm_nfp.principle.calibration import (
    H100_CALIBRATION,
    Calibration,
    default_calibration,
)
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware import (
    CATALOGUE,
    Hardware,
    HardwareError,
    hardware_by_name,
    match_device,
)
from vllm_nfp.principle.hardware_file import (
    Target,
    read_hardware_file,
    target_of,
    write_hardware_file,
)
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.idle_compute import idle_compute_nfp
from vllm_nfp.principle.model_files import load_config
from vllm_nfp.principle.modules import modules_of
from vllm_nfp.principle.predict import (
    CellPrediction,
    Row,
    predict_cell,
    predict_cells,
    rows_of,
)
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import Decoding, LatentAttention, ModelShape, ShapeError
from vllm_nfp.principle.terms import Limit

__all__ = [
    "ATTENTION_BACKENDS",
    "CATALOGUE",
    "H100_CALIBRATION",
    "Boundary",
    "Calibration",
    "CellPrediction",
    "Decoding",
    "Hardware",
    "HardwareError",
    "LatentAttention",
    "Limit",
    "ModelShape",
    "PredictionError",
    "Row",
    "Serving",
    "ShapeError",
    "Target",
    "default_calibration",
    "hardware_by_name",
    "idle_compute_nfp",
    "load_config",
    "match_device",
    "modules_of",
    "predict_cell",
    "predict_cells",
    "read_hardware_file",
    "rows_of",
    "shape_from_config",
    "target_of",
    "write_hardware_file",
]
