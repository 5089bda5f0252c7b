"""What was understood of a model: sizes that its model card gives too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from vllm_nfp.principle.memory import weight_bytes
from vllm_nfp.principle.shape import ModelShape


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a whole model, whatever the ranks that share it.

    Attributes:
        parameters: weights of all matrices; norms, biases and extra heads are left out.
        weight_bytes: bytes of these as stored.
        layers: number of layers by kind; a layer counts for its attention and its feed-forward.
        kv_bytes_per_token: bytes that one token adds to the KV cache, before any window is full.
        state_bytes_per_sequence: bytes of the states of a sequence's recurrent layers.
    """

    parameters: int
    weight_bytes: int
    layers: Mapping[str, int]
    kv_bytes_per_token: int
    state_bytes_per_sequence: int = 0

    def to_dict(self) -> dict[str, object]:
        """JSON-serializable."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for people, for example "8.03 B parameters, 16.1 GB of weights, ..."."""
        kinds = ", ".join(
            f"{count} {kind.replace('_', ' ')}" for kind, count in self.layers.items()
        )
        state = self.state_bytes_per_sequence
        return (
            f"{self.parameters / 1e9:.3g} B parameters, "
            f"{self.weight_bytes / 1e9:.3g} GB of weights, "
            f"layers: {kinds}; {self.kv_bytes_per_token / 1024:.3g} KiB of KV cache per token"
            + (f", {state / 1e6:.3g} MB of state per sequence" if state else "")
        )


def model_facts(shape: ModelShape) -> ModelFacts:
    """The facts of a model."""
    whole = replace(shape, tensor_parallel_size=1, data_parallel_size=1, expert_parallel=False)
    return ModelFacts(
        parameters=whole.total_parameters,
        weight_bytes=round(weight_bytes(whole)),
        layers=_kinds(whole),
        kv_bytes_per_token=_kv_bytes(whole),
        state_bytes_per_sequence=_state_bytes(whole),
    )


def _kv_bytes(shape: ModelShape) -> int:
    """Bytes that one token adds to the caches of attention and indexers."""
    indexer = shape.indexer
    indexed = 0.0 if indexer is None else indexer.layers * indexer.token_bytes
    return round(
        indexed
        + sum(
            part.caches * part.stored(1.0) * heads.kv_heads * heads.token_bytes
            for heads, part in shape.attentions
        )
    )


def _state_bytes(shape: ModelShape) -> int:
    linear = shape.linear_attention
    return 0 if linear is None else round(linear.layers * linear.sequence_bytes)


def _kinds(shape: ModelShape) -> dict[str, int]:
    linear = shape.linear_attention
    parts = [part for _, part in shape.attentions]
    sparse = sum(part.layers for part in parts if part.sparse)
    sliding = sum(part.layers for part in parts if part.window is not None and not part.sparse)
    kinds = {
        "full_attention": shape.attention_layers - sliding - sparse,
        "sparse_attention": sparse,
        "sliding_attention": sliding,
        "linear_attention": 0 if linear is None else linear.layers,
        "dense_ffn": shape.num_dense_layers,
        "moe_ffn": shape.num_moe_layers,
    }
    return {kind: count for kind, count in kinds.items() if count}
