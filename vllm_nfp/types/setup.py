"""What results were measured on and how: device, versions, settings, model, and the probe's run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from vllm_nfp.types.results import State

SHOWN_WHOLE = Meta(max_length=4096)
"""Longest list beside the tables: a page or a terminal shows it whole. vLLM captures some hundred
CUDA graphs, and a probe has at most 256 cells."""


@dataclass(frozen=True, slots=True)
class Device:
    """What ran the steps."""

    type: str
    """cuda or cpu."""
    name: str
    driver: str | None
    """Version of the GPU's driver; None where it is not known."""
    multiprocessors: int | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What tells the servers of a fleet apart."""

    device: str
    """Name of the GPU, or of the processor where there is none."""
    dtype: str
    quantization: str
    """Empty where weights are not quantized."""
    tensor_parallel_size: int
    vllm: str
    vllm_nfp: str


@dataclass(frozen=True, slots=True)
class Environment:
    """Versions and settings that shape a step."""

    date_unix_seconds: float
    device: Device
    vllm_nfp: str
    vllm: str
    torch: str
    cuda: str | None
    """Version of CUDA that torch was built for; None on a CPU."""
    python: str
    dtype: str = ""
    quantization: str | None = None
    kv_cache_dtype: str = ""
    attention_backends: Annotated[tuple[str, ...], SHOWN_WHOLE] = ()
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    max_model_len: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    cudagraph_mode: str = ""
    cudagraph_capture_sizes: Annotated[tuple[int, ...], SHOWN_WHOLE] = ()
    num_kv_blocks: int = 0
    block_size: int = 0
    data_parallel_size: int = 1
    """Engines that take their steps together; 1 for a dense model, whose engines do not."""

    @property
    def server(self) -> ServerInfo:
        """The part that tells servers apart."""
        return ServerInfo(
            self.device.name,
            self.dtype,
            self.quantization or "",
            self.tensor_parallel_size,
            self.vllm,
            self.vllm_nfp,
        )

    def __post_init__(self) -> None:
        # Later than year 9999 no calendar has a date for it.
        if not 0.0 <= self.date_unix_seconds < 2.5e11:
            raise ValueError(f"date_unix_seconds {self.date_unix_seconds:g} is not a date")


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The model's numbers that set its cost; None where it has none."""

    name: str
    architecture: str = ""
    num_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    num_experts: int | None = None
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None
    whole_num_layers: int | None = None
    """Layers of the model's own config.json, where the server was told to load fewer; else None."""

    @property
    def cut_layers(self) -> tuple[int, int] | None:
        """Layers of a model that was cut for the measurement, and of the whole; None: not cut."""
        known, whole = self.num_layers, self.whole_num_layers
        return (known, whole) if known and whole and known < whole else None


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """The probe's settings that a result depends on; see ProbeConfig for each."""

    epsilons: Annotated[tuple[float, ...], SHOWN_WHOLE]
    batch_sizes: Annotated[tuple[int, ...], SHOWN_WHOLE]
    contexts: Annotated[tuple[int, ...], SHOWN_WHOLE]
    positions: Annotated[tuple[int, ...], SHOWN_WHOLE]
    """The grid, beginning with 1."""
    min_samples: int
    wanted_samples: int
    max_samples: int
    sampled_layers: int
    startup_seconds: float
    overhead_budget: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("epsilons", "batch_sizes", "contexts", "positions"):
            values: Sequence[float] = getattr(self, name)
            if not values or any(a >= b for a, b in itertools.pairwise(values)) or values[0] <= 0:
                raise ValueError(f"{name} must be ascending and above 0")


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """How the probe fared."""

    engine: str
    """Index of the data-parallel engine."""
    runner: str
    """Kind of vLLM's model runner."""
    state: State
    reason: str = ""
    """Why the probe is disabled; empty otherwise."""
    probes: Annotated[Mapping[str, int], SHOWN_WHOLE] = field(default_factory=dict)
    """Pairs by outcome."""
    missing_pairs: int = 0
    """Pairs that points which matter still lacked."""
    probe_seconds: float = 0.0
    overhead_ratio: float = 0.0
    startup_seconds: float = 0.0
    graph_bytes: int = 0
    skipped_cells: Annotated[Mapping[str, str], SHOWN_WHOLE] = field(default_factory=dict)
    """Cells that could not be probed, as "B=32 L=16384", and why."""
