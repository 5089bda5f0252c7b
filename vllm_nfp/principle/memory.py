"""Whether weights and KV cache fit into a device: what one rank holds, in bytes.

Activations, CUDA graphs and the part that vLLM leaves free (``--gpu-memory-utilization``) are not
counted: what does not fit here fits nowhere, what fits here may still not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.shape import ModelShape

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A batch size and context whose weights and cache exceed the memory of each rank's device.

    Attributes:
        weight_bytes, cache_bytes: what one rank holds.
        memory_bytes: what its device has.
    """

    batch_size: int
    context: int
    weight_bytes: float
    cache_bytes: float
    memory_bytes: float

    def to_dict(self) -> dict[str, float]:
        """JSON-serializable."""
        return asdict(self)

    @property
    def weights_alone(self) -> bool:
        """Not even the weights fit."""
        return self.weight_bytes > self.memory_bytes


def weight_bytes(shape: ModelShape) -> float:
    """Bytes of the matrices that one rank holds; norms and biases are left out."""
    tables = 2.0 * shape.looked_up_parameters / shape.tensor_parallel_size
    if not shape.tied_embeddings:
        tables += 2.0 * shape.vocab_size * shape.hidden_size / shape.tensor_parallel_size
    return tables + sum(count * gemm.weight_traffic for count, gemm in shape.matrices())


def cache_bytes(shape: ModelShape, batch_size: int, context: int) -> float:
    """Bytes of one rank's KV cache and states for a step of one position.

    A window bounds sliding layers. An indexer has a cache of its own, whole on every rank.
    """
    cached = context + 1
    tokens = sum(
        part.caches * part.stored(cached) * heads.kv_heads * heads.token_bytes
        for heads, part in shape.attentions
    )
    if shape.indexer is not None:
        tokens += cached * shape.indexer.layers * shape.indexer.token_bytes
    linear = shape.linear_attention
    state = 0.0
    if linear is not None:
        state = linear.layers * linear.sequence_bytes / shape.tensor_parallel_size
    return batch_size * (tokens + state)


def too_large(
    shape: ModelShape, hardware: Hardware, batch_sizes: Sequence[int], contexts: Sequence[int]
) -> tuple[TooLarge, ...]:
    """The cells that do not fit; none for a device of unknown capacity."""
    if hardware.memory_bytes is None:
        return ()
    weights = weight_bytes(shape)
    cells = (
        TooLarge(b, length, weights, cache_bytes(shape, b, length), hardware.memory_bytes)
        for b in batch_sizes
        for length in contexts
    )
    return tuple(cell for cell in cells if cell.weight_bytes + cell.cache_bytes > cell.memory_bytes)
