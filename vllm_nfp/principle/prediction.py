"""``predict``: free positions of a model on a device, from its config.json and a data sheet."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_nfp.principle.arguments import (
    DTYPES,
    KV_BITS,
    captured,
    check_grid,
    named,
    routing_skew,
    weight_bits,
)
from vllm_nfp.principle.attention import (
    check_backend,
    default_backend,
)
from vllm_nfp.principle.hardware_file import Target, read_hardware_file, target_of
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.measured_routing import FoundRouting, routing_in
from vllm_nfp.principle.model_sources import read_model
from vllm_nfp.principle.predict import (
    DEFAULT_MAX_POSITIONS,
    CellPrediction,
    Row,
    predict_grid,
    rows_in_order,
    rows_of,
)
from vllm_nfp.principle.predictions import MOST_KEPT, CellKey, Predictions
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape


def predict(
    model: str | Path | Mapping[str, object],
    hardware: str | os.PathLike[str] | Target,
    batch_sizes: Sequence[int] = (1, 8, 32),
    contexts: Sequence[int] = (1024, 4096),
    epsilons: Sequence[float] = (0.1,),
    *,
    calibration: str | Path | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    expert_parallel: bool = False,
    attention_backend: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
    bidirectional: bool = False,
    capture_sizes: Sequence[int] | None = None,
    max_positions: int = DEFAULT_MAX_POSITIONS,
    assume_dense: bool = False,
    routing: str | float = "uniform",
) -> Predictions:
    """Predict how many positions per sequence a server decodes for free. Needs no GPU.

    Args:
        model: a directory with a config.json, the file, or its parsed content; a repository whose
            config.json lies in the local Hugging Face cache; or an example, such as qwen3-8b.
        hardware: a name of the catalogue, the device's name as torch and nvidia-smi print it, a
            hardware file (``*.json``), or a target.
        batch_sizes: sequences in the step.
        contexts: tokens in the cache of each sequence before the step.
        epsilons: tolerances: extra step time that counts as free, as fractions of t(1).
        calibration: a hardware file whose constants replace those of ``hardware``.
        tensor_parallel_size: as vLLM's flag.
        data_parallel_size: as vLLM's flag.
        expert_parallel: as vLLM's ``--enable-expert-parallel``.
        attention_backend: vLLM's name; None: vLLM's default on the device.
        dtype: of activations: auto, bfloat16 or float16, which take the same time.
        quantization: fp8 or int4 weights, for a config.json without a quantization_config.
        kv_cache_dtype: as vLLM's flag: auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2.
        bidirectional: the positions of a step all see each other, as in diffusion models.
        capture_sizes: token counts of the CUDA graphs; None: vLLM's default; empty: no graphs.
        max_positions: largest N to evaluate.
        assume_dense: treat an unknown model_type as a dense Llama-style model.
        routing: how tokens reach experts: uniform, typical (skewed), or the exponent s of shares
            that fall with rank ** -s; or a profile (``*.json``), whose counted choices of experts,
            or else times of ``moe_ffn``, show the exponent. Uniform wakes most experts: skewed
            routers take less time.

    Raises:
        ShapeError: for a config.json without a known shape, or with sizes that do not fit together.
        HardwareError: for unknown hardware, or a hardware file that cannot be used.
        PredictionError: for any other argument out of bounds.
    """
    check_grid(batch_sizes, contexts, epsilons)
    named("dtype", dtype, DTYPES)
    kv_cache_dtype = named("kv_cache_dtype", kv_cache_dtype, KV_BITS)
    target = _target(hardware, calibration)
    config, name = read_model(model)
    shape = shape_from_config(
        config,
        weight_bits=weight_bits(config, quantization),
        kv_bits=KV_BITS[kv_cache_dtype],
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size,
        expert_parallel=expert_parallel,
        assume_dense=assume_dense,
        name=name,
    )
    if bidirectional:
        shape = dataclasses.replace(shape, decoding="bidirectional_block")
    backend = attention_backend or default_backend(shape, target.hardware)
    check_backend(backend, shape, target.hardware)
    serving = Serving(backend, captured(capture_sizes, target.hardware))
    found = _routing(routing, shape, target, serving)
    serving = dataclasses.replace(serving, routing_skew=found.skew, routing_source=found.source)
    cells = predict_grid(shape, target, batch_sizes, contexts, epsilons, serving, max_positions)
    kept: dict[CellKey, CellPrediction] = {}
    rows: list[Row] = []
    numbers = 0
    for cell in cells:
        rows += rows_of(cell)
        numbers += len(cell.positions) * (1 + len(cell.terms) + len(cell.parts))
        if numbers <= MOST_KEPT:
            kept[cell.module, cell.batch_size, cell.context] = cell
    return Predictions(
        model=shape.name,
        shape=shape,
        target=target,
        serving=serving,
        batch_sizes=tuple(batch_sizes),
        contexts=tuple(contexts),
        epsilons=tuple(epsilons),
        max_positions=max_positions,
        rows=rows_in_order(shape, rows),
        config=config,
        cells=kept,
    )


def _routing(
    routing: str | float, shape: ModelShape, target: Target, serving: Serving
) -> FoundRouting:
    """As given, or as a profile shows it."""
    if isinstance(routing, str) and routing.endswith(".json"):
        return routing_in(Path(routing), shape, target, serving)
    return FoundRouting(routing_skew(routing), "")


def _target(hardware: str | os.PathLike[str] | Target, calibration: str | Path | None) -> Target:
    target = hardware if isinstance(hardware, Target) else target_of(hardware)
    if calibration is None:
        return target
    given = read_hardware_file(Path(calibration))
    constants = given.calibration
    if given.hardware.name != target.hardware.name:
        constants = dataclasses.replace(
            constants,
            fitted=False,
            source=f"carried over from {given.hardware.name}: {constants.source}",
        )
    return Target(target.hardware, constants, given.environment)
