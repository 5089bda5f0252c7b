"""``predict``: free positions of a model on a device, from its config.json and a data sheet."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vllm_nfp.dataframe import to_dataframe
from vllm_nfp.principle.arguments import (
    DTYPES,
    KV_BITS,
    captured,
    check_batch_sizes,
    check_contexts,
    check_grid,
    named,
    routing_skew,
    weight_bits,
)
from vllm_nfp.principle.attention import (
    AttentionBackend,
    backend_by_name,
    check_backend,
    default_backend,
)
from vllm_nfp.principle.graphs import padded_tokens
from vllm_nfp.principle.hardware_file import Target, read_hardware_file, target_of
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.memory import TooLarge, too_large
from vllm_nfp.principle.model_facts import ModelFacts, model_facts
from vllm_nfp.principle.model_files import load_config, model_name
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
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.step import Serving, Step
from vllm_nfp.types import Module

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
MOST_KEPT = 1 << 21
"""Numbers of the curves that are kept for plots and explanations: some 64 MiB."""
CellKey: TypeAlias = "tuple[Module, int, int]"
"""(module, batch size, context)"""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predicted NFP of one model on one device, and the assumptions behind it.

    Attributes:
        model: the model's name.
        shape: its sizes on one rank.
        target: the device of each rank and the constants of its kernels.
        serving: how the server runs its steps.
        batch_sizes, contexts, epsilons: as given.
        max_positions: largest N evaluated.
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
    config: Mapping[str, object] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """The model's config.json."""
    cells: Mapping[CellKey, CellPrediction] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )
    """Curves of the rows, up to MOST_KEPT numbers; :meth:`cell` computes the others."""

    @property
    def hardware(self) -> str:
        """The device's name."""
        return self.target.hardware.name

    @property
    def model_facts(self) -> ModelFacts:
        """What was understood of the model."""
        return model_facts(self.shape)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules that the model has."""
        return modules_of(self.shape)

    @property
    def backend(self) -> AttentionBackend:
        """The attention backend's rules."""
        return backend_by_name(self.serving.attention_backend, self.target.hardware)

    @property
    def too_large(self) -> tuple[TooLarge, ...]:
        """The cells whose weights and KV cache exceed the memory of the device."""
        return too_large(self.shape, self.target.hardware, self.batch_sizes, self.contexts)

    def cell(self, module: Module, batch_size: int, context: int) -> CellPrediction:
        """The curve t(N) and its terms, of any cell.

        Args:
            module: its name; case, dashes and underscores do not matter.

        Raises:
            PredictionError: if the model has no such module, or for a value out of bounds.
        """
        check_batch_sizes((batch_size,))
        check_contexts((context,))
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
        """Largest N up to which every step fits a CUDA graph; 0 if N = 1 fits none."""
        sizes = self.serving.capture_sizes
        counts = range(1, self.max_positions + 1)
        return next((n - 1 for n in counts if not padded_tokens(sizes, batch_size, n)), counts[-1])

    def to_dict(self) -> dict[str, Any]:
        """What ``vllm-nfp predict --json`` prints."""
        unfit = [cell.to_dict() for cell in self.too_large]
        return {
            "schema": SCHEMA,
            "model": self.model,
            "hardware": self.hardware,
            "basis": self.target.basis,
            **({"routing_skew": self.serving.routing_skew} if self.shape.num_moe_layers else {}),
            **({"does_not_fit": unfit} if unfit else {}),
            "model_facts": self.model_facts.to_dict(),
            "assumptions": list(self.shape.assumptions),
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame, a column for each field.

        Raises:
            NoPandasError: if pandas is not installed.
        """
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
    routing: str | float = "uniform",
) -> Predictions:
    """Predict how many positions per sequence a server decodes for free. Needs no GPU.

    Args:
        model: a directory with a config.json, the file, or its parsed content.
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
            that fall with rank ** -s. Uniform wakes most experts: skewed routers take less time.

    Raises:
        ShapeError: for a config.json without a known shape, or with sizes that do not fit together.
        HardwareError: for unknown hardware, or a hardware file that cannot be used.
        PredictionError: for any other argument out of bounds.
    """
    check_grid(batch_sizes, contexts, epsilons)
    named("dtype", dtype, DTYPES)
    kv_cache_dtype = named("kv_cache_dtype", kv_cache_dtype, KV_BITS)
    target = _target(hardware, calibration)
    config = model if isinstance(model, Mapping) else load_config(model)
    shape = shape_from_config(
        config,
        weight_bits=weight_bits(config, quantization),
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
    serving = Serving(
        backend, captured(capture_sizes, target.hardware), routing_skew=routing_skew(routing)
    )
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
