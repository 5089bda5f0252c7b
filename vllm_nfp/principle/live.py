"""Predictions for a running server, from what it says of its model and of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_nfp.give_way import in_pieces
from vllm_nfp.principle.attention import backend_by_name
from vllm_nfp.principle.calibration import default_calibration
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.hardware import HardwareError, match_device
from vllm_nfp.principle.hardware_file import Target, read_hardware_file
from vllm_nfp.principle.hf_config import shape_from_config
from vllm_nfp.principle.predict import Row, predict_cells
from vllm_nfp.principle.serving import Serving
from vllm_nfp.principle.shape import ModelShape

ExpertTiles = Mapping[int, Mapping[str, int]]
"""Tiles of the experts' kernel by tokens, in vLLM's names; empty where its default rule holds."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a server runs it.

    Attributes:
        config: the parsed config.json.
        attention_backend: vLLM's name; None: not known.
    """

    config: Mapping[str, object]
    fp8_weights: bool
    fp8_cache: bool
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel: bool
    attention_backend: str | None
    graphs: CapturedGraphs

    @property
    def shape(self) -> ModelShape:
        """The sizes that one rank holds.

        Raises:
            ShapeError: if the model's family is unknown.
        """
        return shape_from_config(
            self.config,
            weight_bits=8 if self.fp8_weights else 16,
            kv_bits=8 if self.fp8_cache else None,
            tensor_parallel_size=self.tensor_parallel_size,
            data_parallel_size=self.data_parallel_size,
            expert_parallel=self.expert_parallel,
        )

    def serving(self, expert_tiles: ExpertTiles) -> Serving:
        """How the server runs its steps."""
        found = Serving(graphs=self.graphs, expert_tiles=expert_tiles)
        backend = self.attention_backend
        return found if backend is None else replace(found, attention_backend=backend)


@dataclass(frozen=True, slots=True)
class Ground:
    """What predictions for a running server rest on."""

    shape: ModelShape
    target: Target
    serving: Serving


def ground_of(
    model: ServedModel,
    device: str,
    expert_tiles: Callable[[ModelShape], ExpertTiles],
    target: Target | None = None,
) -> Ground:
    """Put together what a prediction needs.

    Args:
        device: the GPU's name, as torch gives it.
        expert_tiles: looks up the tiles that vLLM was tuned to for these experts on this device.
        target: the device with constants of its own; None: as the catalogue has it.

    Raises:
        HardwareError: if the device is not in the catalogue.
        ShapeError: if the model's family is unknown.
        PredictionError: for an unknown attention backend.
    """
    if target is None:
        hardware = match_device(device)
        if hardware is None:
            raise HardwareError(f"the GPU {device} is not in the hardware catalogue")
        target = Target(hardware, default_calibration(hardware.name))
    shape = model.shape
    serving = model.serving(expert_tiles(shape))
    backend_by_name(serving.attention_backend, target.hardware)  # refuses an unknown one
    return Ground(shape, target, serving)


def calibrated_target(path: Path, device: str) -> Target:
    """The device of a hardware file, which must be the one that serves.

    Args:
        device: the GPU's name, as torch gives it.

    Raises:
        HardwareError: if the file cannot be used, or is another device's.
    """
    target = read_hardware_file(path)
    names = (target.hardware.name, *target.hardware.device_names)
    known = match_device(device)
    if device not in names and (known is None or known.name not in names):
        raise HardwareError(
            f"hardware_file {path} is for {target.hardware.name}, this GPU is {device}: "
            f"run vllm-nfp calibrate on this GPU"
        )
    return target


def predict_served(
    ground: Ground, cells: Sequence[tuple[int, int]], epsilons: Sequence[float]
) -> tuple[Row, ...]:
    """NFP of every module of the model in every cell, at every tolerance; gives way.

    Args:
        cells: (batch size, context).

    Raises:
        PredictionError: for a cell out of bounds.
    """
    shape, target, serving = ground.shape, ground.target, ground.serving
    return tuple(
        row
        for batch_size, context in in_pieces(cells, 1)
        for row in predict_cells(shape, target, (batch_size,), (context,), tuple(epsilons), serving)
    )
