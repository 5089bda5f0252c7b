"""The sizes of a model that decide its step time, read from a Hugging Face config.json.

All sizes are those of the whole model; the properties that end in ``_gemms`` and ``attention``
give one rank's share under tensor parallelism, as vLLM splits it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Quantization = Literal["none", "fp8", "fp8_block", "wna16", "mxfp4"]
"""How linear weights are stored: wna16 is GPTQ or AWQ; it and mxfp4 multiply in 16 bits."""


class ShapeError(ValueError):
    """A configuration that gives no usable shape; the message names the value or the field."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Sizes of multi-head latent attention (DeepSeek V2 and V3)."""

    q_rank: int
    """Rank of the query compression; 0: queries are not compressed."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Gemm:
    """One weight matrix as a rank holds it: tokens x ``inputs`` times ``inputs`` x ``outputs``."""

    inputs: int
    outputs: int
    weight_bytes: float
    """Bytes per parameter."""
    fp8: bool = False
    """The multiplication runs in FP8 where the hardware can."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.inputs * self.outputs

    @property
    def weight_traffic(self) -> float:
        """Bytes of one reading of the weights."""
        return self.parameters * self.weight_bytes


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """What one rank's attention kernel sees in one layer.

    Latent attention counts as one KV head that all query heads share: its key is latent and rope
    part, its value the latent part of the same bytes.
    """

    kv_heads: int
    group: int
    """Query heads per KV head, g in THEORY.md."""
    score_dim: int
    value_dim: int
    token_bytes: float
    """KV bytes per token and KV head."""
    fp8: bool

    @property
    def flops_per_pair(self) -> float:
        """FLOPs for one query row and one cached token: score and value product."""
        return 2.0 * (self.score_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder-only model with gated feed-forward blocks."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    """Width of a dense feed-forward block; unused if every layer has experts."""
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_dense_layers: int
    num_moe_layers: int = 0
    num_experts: int = 0
    """Routed experts per layer; 0: a dense model."""
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    num_shared_experts: int = 0
    shared_intermediate_size: int = 0
    """Width of all shared experts of a layer together."""
    sliding_window: int | None = None
    """Tokens that a sliding layer attends to."""
    num_sliding_layers: int = 0
    tied_embeddings: bool = False
    quantization: Quantization = "none"
    weight_bytes: float = 2.0
    """Bytes per parameter of projections and dense or shared feed-forward blocks."""
    expert_weight_bytes: float = 2.0
    """Bytes per parameter of routed experts."""
    lm_head_weight_bytes: float = 2.0
    """Bytes per parameter of embedding, router and LM head, which checkpoints leave in 16 bits."""
    kv_bytes: float = 2.0
    """Bytes per element of the KV cache."""
    mla: LatentAttention | None = None
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        self._check_positive()
        self._check_layers()
        self._check_split()

    @property
    def use_mla(self) -> bool:
        """The model caches a latent instead of keys and values."""
        return self.mla is not None

    @property
    def fp8(self) -> bool:
        """Linear layers multiply in FP8."""
        return self.quantization in ("fp8", "fp8_block")

    @property
    def attention(self) -> AttentionHeads:
        """One rank's attention kernel; fp8 if the cache is, since the query is then cast too."""
        heads = self.num_attention_heads // self.tensor_parallel_size
        fp8 = self.kv_bytes <= 1
        if self.mla is not None:
            score = self.mla.kv_rank + self.mla.rope_dim
            return AttentionHeads(1, heads, score, self.mla.kv_rank, score * self.kv_bytes, fp8)
        kv_heads = max(1, self.num_kv_heads // self.tensor_parallel_size)
        token_bytes = 2 * self.head_dim * self.kv_bytes
        return AttentionHeads(
            kv_heads, heads // kv_heads, self.head_dim, self.head_dim, token_bytes, fp8
        )

    @property
    def projection_gemms(self) -> tuple[Gemm, ...]:
        """One rank's query, key, value and output projections of one layer.

        For latent attention the two absorbed per-head products are one matrix of the same size.
        """
        heads = self.num_attention_heads // self.tensor_parallel_size
        if self.mla is None:
            columns = (heads + 2 * self.attention.kv_heads) * self.head_dim
            return (
                self._linear(self.hidden_size, columns),
                self._linear(heads * self.head_dim, self.hidden_size),
            )
        mla = self.mla
        query = heads * (mla.nope_dim + mla.rope_dim)
        first = mla.q_rank or query
        return (
            self._linear(self.hidden_size, first + mla.kv_rank + mla.rope_dim),
            *((self._linear(mla.q_rank, query),) if mla.q_rank else ()),
            self._linear(mla.kv_rank, heads * (mla.nope_dim + mla.value_dim)),
            self._linear(heads * mla.value_dim, self.hidden_size),
        )

    @property
    def dense_ffn_gemms(self) -> tuple[Gemm, ...]:
        """One rank's gate-up and down matrices of a dense layer."""
        return self._gated(self.intermediate_size, self.weight_bytes)

    @property
    def expert_gemms(self) -> tuple[Gemm, ...]:
        """One rank's gate-up and down matrices of one routed expert."""
        return self._gated(self.moe_intermediate_size, self.expert_weight_bytes)

    @property
    def shared_gemms(self) -> tuple[Gemm, ...]:
        """One rank's router and shared expert of a layer with experts."""
        router = Gemm(self.hidden_size, self.num_experts, self.lm_head_weight_bytes)
        if not self.shared_intermediate_size:
            return (router,)
        return (router, *self._gated(self.shared_intermediate_size, self.weight_bytes))

    @property
    def lm_head_gemm(self) -> Gemm:
        """One rank's LM head."""
        columns = math.ceil(self.vocab_size / self.tensor_parallel_size)
        return Gemm(self.hidden_size, columns, self.lm_head_weight_bytes)

    @property
    def total_parameters(self) -> int:
        """Weights of the whole model in its matrices; norms, biases and extra heads left out."""
        whole = replace(self, tensor_parallel_size=1)
        experts = whole.num_experts * _parameters(whole.expert_gemms)
        return (
            whole.num_layers * _parameters(whole.projection_gemms)
            + whole.num_dense_layers * _parameters(whole.dense_ffn_gemms)
            + whole.num_moe_layers * (experts + _parameters(whole.shared_gemms))
            + whole.lm_head_gemm.parameters * (1 if whole.tied_embeddings else 2)
        )

    def _linear(self, inputs: int, outputs: int) -> Gemm:
        return Gemm(inputs, outputs, self.weight_bytes, self.fp8)

    def _gated(self, width: int, weight_bytes: float) -> tuple[Gemm, ...]:
        share = width // self.tensor_parallel_size
        return (
            Gemm(self.hidden_size, 2 * share, weight_bytes, self.fp8),
            Gemm(share, self.hidden_size, weight_bytes, self.fp8),
        )

    def _check_positive(self) -> None:
        names = [
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "num_kv_heads",
            "head_dim",
            "vocab_size",
            "weight_bytes",
            "expert_weight_bytes",
            "lm_head_weight_bytes",
            "kv_bytes",
            "tensor_parallel_size",
        ]
        if self.num_dense_layers:
            names.append("intermediate_size")
        if self.num_moe_layers:
            names += ["num_experts", "experts_per_token", "moe_intermediate_size"]
        if self.num_sliding_layers:
            names.append("sliding_window")
        for name in names:
            value = getattr(self, name)
            if value is None or not math.isfinite(value) or value <= 0:
                raise ShapeError(f"{name} must be above 0, not {value!r}")

    def _check_layers(self) -> None:
        if min(self.num_dense_layers, self.num_moe_layers) < 0 or (
            self.num_dense_layers + self.num_moe_layers != self.num_layers
        ):
            raise ShapeError(
                f"num_dense_layers {self.num_dense_layers} and num_moe_layers "
                f"{self.num_moe_layers} must add up to num_layers {self.num_layers}"
            )
        if not 0 <= self.num_sliding_layers <= self.num_layers:
            raise ShapeError(
                f"num_sliding_layers {self.num_sliding_layers} must lie from 0 "
                f"to num_layers {self.num_layers}"
            )
        if self.experts_per_token > self.num_experts:
            raise ShapeError(
                f"experts_per_token {self.experts_per_token} is above "
                f"num_experts {self.num_experts}"
            )

    def _check_split(self) -> None:
        ranks, heads, kv_heads = (
            self.tensor_parallel_size,
            self.num_attention_heads,
            self.num_kv_heads,
        )
        if heads % kv_heads:
            raise ShapeError(f"num_kv_heads {kv_heads} does not divide {heads} attention heads")
        if heads % ranks:
            raise ShapeError(f"tensor_parallel_size {ranks} does not divide {heads} heads")
        if not self.use_mla and kv_heads % ranks and ranks % kv_heads:
            raise ShapeError(f"tensor_parallel_size {ranks} does not fit {kv_heads} KV heads")
        widths = {
            "intermediate_size": self.intermediate_size if self.num_dense_layers else 0,
            "moe_intermediate_size": self.moe_intermediate_size,
            "shared_intermediate_size": self.shared_intermediate_size,
        }
        for name, width in widths.items():
            if width % ranks:
                raise ShapeError(f"tensor_parallel_size {ranks} does not divide {name} {width}")


def _parameters(gemms: tuple[Gemm, ...]) -> int:
    return sum(gemm.parameters for gemm in gemms)
