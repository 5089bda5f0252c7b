"""What results were measured on: the device, versions, vLLM's settings, and the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

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

    def __post_init__(self) -> None:
        # Later than year 9999 no calendar has a date for it.
        if not 0.0 <= self.date_unix_seconds < 2.5e11:
            raise ValueError(f"date_unix_seconds {self.date_unix_seconds:g} is no date")


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
