"""Predicted NFP of one model on one device: rows, curves, and what they rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from vllm_nfp.dataframe import to_dataframe
from vllm_nfp.principle.arguments import check_batch_sizes, check_contexts
from vllm_nfp.principle.attention import AttentionBackend, backend_by_name
from vllm_nfp.principle.curve_errors import MEANING, curve_errors
from vllm_nfp.principle.errors import PredictionError
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.host_time import HostTime, host_time
from vllm_nfp.principle.memory import TooLarge, too_large
from vllm_nfp.principle.model_facts import ModelFacts, model_facts
from vllm_nfp.principle.modules import module_named, modules_of
from vllm_nfp.principle.notebook import PredictedPoint, html_table, points
from vllm_nfp.principle.predict import CellPrediction, Row, predict_cell
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.principle.step import Step
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

    def __repr__(self) -> str:
        return f"Predictions({self.model} on {self.hardware}: {len(self.rows)} rows)"

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
    def host_time(self) -> HostTime:
        """What an engine's host adds to these times of the GPU."""
        return host_time(self.shape.num_ranks)

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
        graphs, counts = self.serving.graphs, range(1, self.max_positions + 1)
        missing = (n for n in counts if not graphs.padded_tokens(batch_size, n))
        return next(missing, counts[-1] + 1) - 1

    def to_dict(self, curves: bool = False) -> dict[str, Any]:
        """What ``vllm-nfp predict --json`` prints.

        Args:
            curves: with t(N) and its error in every row, as ``--curves`` asks for.
        """
        unfit = [cell.to_dict() for cell in self.too_large]
        return {
            "schema": SCHEMA,
            "model": self.model,
            "hardware": self.hardware,
            "basis": self.target.basis,
            "bases": dict(self.target.calibration.origins),
            **({"routing_skew": self.serving.routing_skew} if self.shape.num_moe_layers else {}),
            **({"does_not_fit": unfit} if unfit else {}),
            "model_facts": self.model_facts.to_dict(),
            "assumptions": list(self.shape.assumptions),
            "host_time": dataclasses.asdict(self.host_time),
            **({"curve_errors": MEANING} if curves else {}),
            "rows": [
                {**row.to_dict(), **(self._curve(row) if curves else {})} for row in self.rows
            ],
        }

    def _curve(self, row: Row) -> dict[str, Any]:
        cell = self.cell(row.module, row.batch_size, row.context)
        return {
            "curve": [list(point) for point in zip(cell.positions, cell.seconds, strict=True)],
            "curve_errors": curve_errors(cell, self.shape, self.target),
        }

    def to_dataframe(self, table: Literal["rows", "curves"] = "rows") -> pd.DataFrame:
        """One table as a pandas DataFrame, a column for each field.

        Args:
            table: rows, with NFP; or curves, every t(N) with t(N) / t(1) and its error.

        Raises:
            NoPandasError: if pandas is not installed.
            PredictionError: for another table.
        """
        if table == "rows":
            return to_dataframe(self.rows, Row)
        if table == "curves":
            return to_dataframe(points(self), PredictedPoint)
        raise PredictionError(f"table must be rows or curves, not {table!r:.60}")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_table(self)
