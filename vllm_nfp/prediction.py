"""``predict``: near-free parallelism of a model on a device, from config.json and data sheet."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vllm_nfp.principle.attention import (
    AttentionBackend,
    backend_by_name,
    check_backend,
    default_backend,
)
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES, padded_tokens
from vllm_nfp.principle.hardware_file import Target, read_hardware_file, target_of
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.model_files import load_config
from vllm_nfp.principle.modules import module_named, modules_of
from vllm_nfp.principle.predict import (
    DEFAULT_MAX_POSITIONS,
    CellPrediction,
    Row,
    predict_cell,
    predict_grid,
    rows_in_order,
    rows_of,
)
from vllm_nfp.principle.quantized_weights import quantization_of
from vllm_nfp.principle.shape import ModelShape, shown
from vllm_nfp.principle.step import Serving, Step
from vllm_nfp.text import hint, same_name
from vllm_nfp.types import Module

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
MOST_VALUES = 64
"""Values in a list of batch sizes, contexts or tolerances."""
MOST_SEQUENCES = 1 << 16
MOST_CONTEXT = 1 << 27
MOST_EPSILON = 100.0
MOST_CAPTURE_SIZES = 1024
MOST_KEPT = 1 << 21
"""Numbers of the curves that are kept for plots and explanations: some 64 MiB."""
CellKey: TypeAlias = "tuple[Module, int, int]"
"""(module, batch size, context)"""

DTYPES = ("auto", "bfloat16", "float16")
WEIGHT_BITS: Mapping[str, int] = {"fp8": 8, "int4": 4}
"""Bits per weight of ``quantization``; 4 bits multiply in 16 (GPTQ, AWQ)."""
KV_BITS: Mapping[str, float | None] = {
    "auto": None,
    "bfloat16": 16,
    "float16": 16,
    "fp8": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
}
"""Bits per cached element by vLLM's name of the cache's type; None: as the checkpoint says."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted boundaries of one model on one device, and what they were predicted with.

    Attributes:
        model: the model's name.
        shape: its sizes, as one rank holds them.
        target: the device of each rank and the constants of its kernels.
        serving: how the server runs its steps.
        batch_sizes, contexts, epsilons: what was asked for, in that order.
        max_positions: last N that was looked at.
        rows: a row for each module, batch size, context and tolerance.
    """

    model: str
    shape: ModelShape
    target: Target
    serving: Serving
    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    epsilons: tuple[float, ...]
    max_positions: int
    rows: tuple[Row, ...]
    cells: Mapping[CellKey, CellPrediction] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """The curves behind the rows, as far as MOST_KEPT allows; :meth:`cell` makes the others."""

    @property
    def hardware(self) -> str:
        """The device's name."""
        return self.target.hardware.name

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that the model has."""
        return modules_of(self.shape)

    @property
    def backend(self) -> AttentionBackend:
        """The attention backend's rules."""
        return backend_by_name(self.serving.attention_backend, self.target.hardware)

    def cell(self, module: Module, batch_size: int, context: int) -> CellPrediction:
        """The curve t(N) and its terms, of any cell.

        Args:
            module: its name; case, dashes and underscores do not matter.

        Raises:
            PredictionError: if the model has no such module, or for a value out of bounds.
        """
        _check_sizes("batch_sizes", (batch_size,), 1, MOST_SEQUENCES)
        _check_sizes("contexts", (context,), 0, MOST_CONTEXT)
        module = module_named(module) or module
        kept = self.cells.get((module, batch_size, context))
        if kept is not None:
            return kept
        return predict_cell(
            self.shape,
            self.target,
            module,
            batch_size,
            context,
            self.epsilons,
            self.serving,
            self.max_positions,
        )

    def step(self, batch_size: int, context: int, positions: Sequence[int]) -> Step:
        """The kernels of a step, for chosen N."""
        counts = np.array(positions, dtype=np.float64)
        return Step(self.shape, self.target, self.serving, batch_size, context, counts)

    def in_graphs(self, batch_size: int) -> int:
        """Largest N up to which every step fits a CUDA graph; 0 if not even N = 1 does."""
        sizes = self.serving.capture_sizes
        counts = range(1, self.max_positions + 1)
        return next((n - 1 for n in counts if not padded_tokens(sizes, batch_size, n)), counts[-1])

    def to_dict(self) -> dict[str, Any]:
        """What ``vllm-nfp predict --json`` prints."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "hardware": self.hardware,
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame, a column for each field.

        Raises:
            ProfileError: if pandas is not installed.
        """
        from vllm_nfp.results.profile import to_dataframe

        return to_dataframe(self.rows, Row)


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
) -> Predictions:
    """Predict how many positions per sequence a server decodes for free. Needs no GPU.

    Args:
        model: a folder with a config.json, the file, or its parsed content.
        hardware: a name of the catalogue, the device's name as torch and nvidia-smi print it, a
            hardware file (``*.json``), or a target.
        batch_sizes: sequences in the step.
        contexts: tokens in the cache of each sequence before the step.
        epsilons: tolerances, as shares of t(1).
        calibration: a hardware file whose constants are taken instead of those of ``hardware``.
        tensor_parallel_size: as vLLM's flag.
        data_parallel_size: as vLLM's flag.
        expert_parallel: as vLLM's ``--enable-expert-parallel``.
        attention_backend: vLLM's name; None: what vLLM takes on the device.
        dtype: of activations: auto, bfloat16 or float16, which take the same time.
        quantization: fp8 or int4 for the weights of a config.json that says nothing of it.
        kv_cache_dtype: as vLLM's flag: auto, bfloat16, float16, fp8, fp8_e4m3, fp8_e5m2.
        bidirectional: the positions of a step all see each other, as in diffusion models.
        capture_sizes: token counts of the CUDA graphs; None: vLLM's default; empty: no graphs.
        max_positions: last N that is looked at.
        assume_dense: read a config.json of an unknown family like Llama's.

    Raises:
        ShapeError: for a config.json that gives no shape, or sizes that cannot be.
        HardwareError: for unknown hardware, or a hardware file that cannot be used.
        PredictionError: for another argument that is refused.
    """
    _check_sizes("batch_sizes", batch_sizes, 1, MOST_SEQUENCES)
    _check_sizes("contexts", contexts, 0, MOST_CONTEXT)
    _check_epsilons(epsilons)
    for name, values in (
        ("batch_sizes", batch_sizes),
        ("contexts", contexts),
        ("epsilons", epsilons),
    ):
        _check_list(name, values)
    _named("dtype", dtype, DTYPES)
    kv_cache_dtype = _named("kv_cache_dtype", kv_cache_dtype, KV_BITS)
    target = _target(hardware, calibration)
    config = model if isinstance(model, Mapping) else load_config(model)
    shape = shape_from_config(
        config,
        weight_bits=_weight_bits(config, quantization),
        kv_bits=KV_BITS[kv_cache_dtype],
        tensor_parallel_size=tensor_parallel_size,
        data_parallel_size=data_parallel_size,
        expert_parallel=expert_parallel,
        assume_dense=assume_dense,
        name="" if isinstance(model, Mapping) else model_name(Path(model)),
    )
    if bidirectional:
        shape = dataclasses.replace(shape, decoding="bidirectional_block")
    backend = attention_backend or default_backend(shape, target.hardware)
    check_backend(backend, shape, target.hardware)
    serving = Serving(backend, _capture_sizes(capture_sizes))
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
        cells=kept,
    )


def model_name(path: Path) -> str:
    """The name of a model's folder; that of the repository for a folder of Hugging Face's cache."""
    folder = path.resolve()
    if folder.is_file():
        if folder.name != "config.json":
            return _shown_name(folder.stem)
        folder = folder.parent
    if folder.parent.name == "snapshots" and folder.parts[-3].startswith("models--"):
        return _shown_name(folder.parts[-3].removeprefix("models--").replace("--", "/"))
    return _shown_name(folder.name)


def _shown_name(name: str) -> str:
    """A name fit for tables; empty, so that the config's own is taken, if it is not."""
    return name if name.isprintable() and len(name) <= 200 else ""


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


def _weight_bits(config: Mapping[str, object], quantization: str | None) -> float:
    if quantization is None:
        return 16
    quantization = _named("quantization", quantization, WEIGHT_BITS)
    text = config.get("text_config")
    if quantization_of(config, text if isinstance(text, Mapping) else config) is not None:
        raise PredictionError(
            f"quantization {quantization!r} is given, but the config.json says itself how weights "
            f"are stored (quantization_config): leave it out"
        )
    return WEIGHT_BITS[quantization]


def _capture_sizes(given: Sequence[int] | None) -> tuple[int, ...]:
    if given is None:
        return DEFAULT_CAPTURE_SIZES
    if not given:
        return ()
    _check_sizes("capture_sizes", given, 1, MOST_SEQUENCES)
    _check_list("capture_sizes", given, MOST_CAPTURE_SIZES)
    return tuple(sorted(given))


def _check_list(name: str, values: Sequence[float], most: int = MOST_VALUES) -> None:
    if not values:
        raise PredictionError(f"{name} is empty: give one value or more")
    if len(values) > most:
        raise PredictionError(f"{name} holds {len(values)} values: give at most {most}")
    for low, high in itertools.pairwise(sorted(values)):
        if low == high:
            raise PredictionError(f"{name} holds {low:g} twice: give each value once")


def _check_sizes(name: str, values: Sequence[int], least: int, most: int) -> None:
    for value in values:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            raise PredictionError(
                f"{name} must hold whole numbers from {least} to {most}, not {shown(value)}"
            )


def _check_epsilons(values: Sequence[float]) -> None:
    for value in values:
        if not math.isfinite(value) or not 0 <= value <= MOST_EPSILON:
            raise PredictionError(
                f"epsilon must be a share from 0 to {MOST_EPSILON:g}, as in 0.1, not {value!r}"
            )


def _named(name: str, value: str, allowed: Iterable[str]) -> str:
    """What is meant of what is allowed, however it is spelled."""
    names = tuple(allowed)
    found = same_name(value, names) if isinstance(value, str) else None
    if found is None:
        near = hint(value, names) if isinstance(value, str) else ""
        raise PredictionError(f"{name} must be one of {', '.join(names)}, not {value!r:.80}{near}")
    return found
