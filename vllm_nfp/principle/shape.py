"""The sizes of a model that decide its step time, read from a Hugging Face config.json.

All sizes are those of the whole model. The properties that end in ``_gemms``, start with ``local``
or are named ``attention`` give one rank's share, as vLLM splits it:

- tensor parallelism splits heads, widths and vocabulary over ``tensor_parallel_size`` ranks; a
  data-parallel replica has its own copy of all this;
- routed experts are split over all ``tensor_parallel_size`` x ``data_parallel_size`` ranks
  together: every expert in as many slices, or, with ``expert_parallel`` (vLLM's
  ``--enable-expert-parallel``), every rank whole experts of its own;
- so the experts of a rank see the tokens of all data-parallel replicas, the rest only its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vllm_nfp.principle.layer_parts import Indexer, LinearAttention

Quantization = Literal["none", "fp8", "fp8_block", "wna16", "mxfp4"]
"""How linear weights are stored: wna16 is GPTQ or AWQ; it and mxfp4 multiply in 16 bits."""

Decoding = Literal["causal", "bidirectional_block"]
"""How the positions of one step see each other: each those before it, or all of them all."""

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
"""Bound on widths, heads, experts and vocabulary."""
MAX_TOKENS = 1 << 40
"""Bound on windows."""
_SHOWN_CHARACTERS = 60


class ShapeError(ValueError):
    """A configuration that gives no usable shape; the message names the value or the field."""


def shown(value: object) -> str:
    """A foreign value for an error message: short, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        text = repr(value[: _SHOWN_CHARACTERS + 1])
        return text if len(value) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...'"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Sizes of multi-head latent attention (DeepSeek V2 and V3)."""

    q_rank: int
    """Rank of the query compression; 0: queries are not compressed."""
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    absorbed: bool = True
    """The cache holds the latent; else keys and values of every head, as of other models."""


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
    """Query heads per KV head, g in docs/theory.md."""
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
    """Sizes of a decoder-only model whose layers are alike but for experts and windows."""

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
    """Tokens that a sliding layer attends to; of a chunked layer (Llama 4), the most."""
    num_sliding_layers: int = 0
    tied_embeddings: bool = False
    quantization: Quantization = "none"
    weight_bytes: float = 2.0
    """Bytes per parameter of the attention projections; of dense and shared feed-forward blocks
    too, unless ``dense_weight_bytes`` or ``shared_weight_bytes`` is given. A part that the
    quantization leaves in 16 bits in some layers only has the mean over its layers."""
    expert_weight_bytes: float = 2.0
    """Bytes per parameter of routed experts."""
    lm_head_weight_bytes: float = 2.0
    """Bytes per parameter of the LM head, which most checkpoints leave in 16 bits."""
    kv_bytes: float = 2.0
    """Bytes per element of the KV cache."""
    mla: LatentAttention | None = None
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    expert_parallel: bool = False
    """Ranks hold whole experts, not a slice of every one."""
    gated_ffn: bool = True
    """Feed-forward blocks, dense, shared and routed, have a gate beside the up projection."""
    shared_expert_gate: bool = False
    """A matrix of one column scales the shared expert of every token (Qwen2-MoE)."""
    decoding: Decoding = "causal"
    diffusion_block_size: int | None = None
    """Positions of a diffusion model's block; None: causal, or the config leaves it to the
    sampler."""
    dense_weight_bytes: float | None = None
    """Bytes per parameter of dense feed-forward blocks; None: ``weight_bytes``."""
    shared_weight_bytes: float | None = None
    """Bytes per parameter of shared experts; None: ``weight_bytes``."""
    router_weight_bytes: float = 2.0
    num_attention_layers: int | None = None
    """Layers with attention to a cache; None: every layer has it and one feed-forward block."""
    linear_attention: LinearAttention | None = None
    """Layers with a state instead of a cache."""
    indexer: Indexer | None = None
    """Picks the tokens that attention reads, in a latent cache."""
    attention_gate: bool = False
    """A gate as wide as the attention's output, from one more projection."""
    idle_experts: int = 0
    """Experts per layer that the router may choose and that do nothing (LongCat)."""
    expert_hidden_size: int = 0
    """Width of the routed experts' inputs, if projections narrow them; 0: ``hidden_size``."""
    assumptions: tuple[str, ...] = field(default=(), compare=False)
    """Sentences on what the config leaves open or the prediction leaves out."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_bytes()
        self._check_layers()
        self._check_split()

    @property
    def attention_layers(self) -> int:
        """Layers with attention to a cache."""
        return self.num_layers if self.num_attention_layers is None else self.num_attention_layers

    @property
    def use_mla(self) -> bool:
        """The model caches a latent instead of keys and values."""
        return self.mla is not None and self.mla.absorbed

    @property
    def fp8(self) -> bool:
        """Linear layers multiply in FP8."""
        return self.quantization in ("fp8", "fp8_block")

    @property
    def bidirectional(self) -> bool:
        """The positions of a step all see each other: a diffusion model."""
        return self.decoding == "bidirectional_block"

    @property
    def expert_parallel_size(self) -> int:
        """Ranks that share the experts out among them; 1: none does."""
        return self.num_ranks if self.expert_parallel else 1

    @property
    def expert_tensor_parallel_size(self) -> int:
        """Ranks that each hold a slice of the same expert."""
        return 1 if self.expert_parallel else self.num_ranks

    @property
    def local_experts(self) -> int:
        """Routed experts of which a rank holds weights: of the fullest rank, if uneven."""
        return math.ceil(self.num_experts / self.expert_parallel_size)

    @property
    def local_experts_per_token(self) -> float:
        """Experts of a rank that a token meets, on average over tokens under uniform routing."""
        if not self.num_experts:
            return 0.0
        return self.experts_per_token * self.local_experts / self.num_experts

    @property
    def attention(self) -> AttentionHeads:
        """One rank's attention kernel; fp8 if the cache is, since the query is then cast too."""
        heads = self.num_attention_heads // self.tensor_parallel_size
        fp8 = self.kv_bytes <= 1
        if self.mla is not None and self.mla.absorbed:
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
            queries = 2 * heads if self.attention_gate else heads
            columns = (queries + 2 * self.attention.kv_heads) * self.head_dim
            return (
                self._linear(self.hidden_size, columns),
                self._linear(heads * self.head_dim, self.hidden_size),
            )
        mla = self.mla
        query = heads * (mla.nope_dim + mla.rope_dim)
        first = mla.q_rank or query
        return (
            self._linear(self.hidden_size, first + mla.kv_rank + mla.rope_dim),
            *(
                (self._linear(self.hidden_size, heads * mla.value_dim),)
                if self.attention_gate
                else ()
            ),
            *((self._linear(mla.q_rank, query),) if mla.q_rank else ()),
            self._linear(mla.kv_rank, heads * (mla.nope_dim + mla.value_dim)),
            self._linear(heads * mla.value_dim, self.hidden_size),
        )

    @property
    def dense_ffn_gemms(self) -> tuple[Gemm, ...]:
        """One rank's gate-up (or up alone) and down matrices of a dense layer."""
        share = self.intermediate_size // self.tensor_parallel_size
        return self._feed_forward(share, self._bytes(self.dense_weight_bytes))

    @property
    def expert_gemms(self) -> tuple[Gemm, ...]:
        """One rank's gate-up (or up alone) and down matrices of one routed expert."""
        share = self.moe_intermediate_size // self.expert_tensor_parallel_size
        return self._feed_forward(
            share, self.expert_weight_bytes, self.expert_hidden_size or self.hidden_size
        )

    @property
    def latent_gemms(self) -> tuple[Gemm, ...]:
        """Projections to and from the routed experts' width, whole on every rank."""
        if not self.expert_hidden_size:
            return ()
        stored = self._bytes(self.shared_weight_bytes)
        return (
            self._gemm(self.hidden_size, self.expert_hidden_size, stored),
            self._gemm(self.expert_hidden_size, self.hidden_size, stored),
        )

    @property
    def indexer_gemms(self) -> tuple[Gemm, ...]:
        """Queries, and key with head weights, of one layer's indexer; the latter in 16 bits."""
        if self.indexer is None:
            return ()
        heads, width = self.indexer.heads, self.indexer.head_dim
        return (
            self._linear(self.indexer.query_inputs, heads * width),
            Gemm(self.hidden_size, width + heads, 2.0),
        )

    @property
    def linear_attention_gemms(self) -> tuple[Gemm, ...]:
        """One rank's projections of a layer with a state."""
        if self.linear_attention is None:
            return ()
        shares = (m.per_rank(self.tensor_parallel_size) for m in self.linear_attention.matrices)
        return tuple(self._linear(inputs, outputs) for inputs, outputs in shares)

    @property
    def shared_gemms(self) -> tuple[Gemm, ...]:
        """One rank's router and shared expert of a layer with experts.

        The router is whole on every rank.
        """
        router = Gemm(
            self.hidden_size, self.num_experts + self.idle_experts, self.router_weight_bytes
        )
        if not self.shared_intermediate_size:
            return (router,)
        share = self.shared_intermediate_size // self.tensor_parallel_size
        gate = Gemm(self.hidden_size, 1, self.router_weight_bytes)
        return (
            router,
            *self._feed_forward(share, self._bytes(self.shared_weight_bytes)),
            *((gate,) if self.shared_expert_gate else ()),
        )

    @property
    def lm_head_gemm(self) -> Gemm:
        """One rank's LM head."""
        columns = math.ceil(self.vocab_size / self.tensor_parallel_size)
        return Gemm(self.hidden_size, columns, self.lm_head_weight_bytes)

    @property
    def total_parameters(self) -> int:
        """Weights of the whole model in its matrices; norms, biases and extra heads left out."""
        whole = replace(self, tensor_parallel_size=1, data_parallel_size=1, expert_parallel=False)
        embedding = 0 if whole.tied_embeddings else whole.lm_head_gemm.parameters
        return embedding + sum(count * gemm.parameters for count, gemm in whole.matrices())

    def matrices(self, experts: int | None = None) -> list[tuple[int, Gemm]]:
        """One rank's matrices with how often it has each; the embedding is left out.

        Args:
            experts: routed experts to count in each layer that has them; None: all of the rank.
        """
        indexers = 0 if self.indexer is None else self.indexer.layers
        linear = 0 if self.linear_attention is None else self.linear_attention.layers
        routed = self.num_moe_layers * (self.local_experts if experts is None else experts)
        return [
            *((self.attention_layers, gemm) for gemm in self.projection_gemms),
            *((indexers, gemm) for gemm in self.indexer_gemms),
            *((linear, gemm) for gemm in self.linear_attention_gemms),
            *((self.num_dense_layers, gemm) for gemm in self.dense_ffn_gemms),
            *((self.num_moe_layers, gemm) for gemm in (*self.shared_gemms, *self.latent_gemms)),
            *((routed, gemm) for gemm in self.expert_gemms),
            (1, self.lm_head_gemm),
        ]

    @property
    def num_ranks(self) -> int:
        """Tensor-parallel ranks of all data-parallel ranks."""
        return self.tensor_parallel_size * self.data_parallel_size

    def _bytes(self, part: float | None) -> float:
        return self.weight_bytes if part is None else part

    def _linear(self, inputs: int, outputs: int) -> Gemm:
        return self._gemm(inputs, outputs, self.weight_bytes)

    def _feed_forward(self, width: int, weight_bytes: float, hidden: int = 0) -> tuple[Gemm, ...]:
        columns = 2 * width if self.gated_ffn else width
        hidden = hidden or self.hidden_size
        return (
            self._gemm(hidden, columns, weight_bytes),
            self._gemm(width, hidden, weight_bytes),
        )

    def _gemm(self, inputs: int, outputs: int, weight_bytes: float) -> Gemm:
        """A matrix that multiplies in FP8 if the model does and most of it is not left out."""
        return Gemm(inputs, outputs, weight_bytes, self.fp8 and weight_bytes < 1.5)

    def _check_sizes(self) -> None:
        for name, (least, most) in self._bounds().items():
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= most:
                raise ShapeError(
                    f"{name} must be a whole number from {least} to {most}, not {shown(value)}"
                )

    def _bounds(self) -> dict[str, tuple[int, int]]:
        """Least and most of every size."""
        needed = {
            "num_attention_heads": True,
            "num_kv_heads": True,
            "head_dim": True,
            "hidden_size": True,
            "vocab_size": True,
            "intermediate_size": self.num_dense_layers != 0,
            "num_experts": self.num_moe_layers != 0,
            "experts_per_token": self.num_moe_layers != 0,
            "moe_intermediate_size": self.num_moe_layers != 0,
            "num_shared_experts": False,
            "shared_intermediate_size": False,
            "tensor_parallel_size": True,
            "data_parallel_size": True,
        }
        bounds = {name: (int(least), MAX_SIZE) for name, least in needed.items()}
        layers = dict.fromkeys(("num_dense_layers", "num_moe_layers", "num_sliding_layers"), 0)
        bounds |= {name: (least, MAX_LAYERS) for name, least in layers.items()}
        bounds["num_layers"] = (1, MAX_LAYERS)
        bounds["expert_hidden_size"] = (0, MAX_SIZE)
        if self.num_attention_layers is not None:
            bounds["num_attention_layers"] = (1, MAX_LAYERS)
        if self.num_sliding_layers or self.sliding_window is not None:
            bounds["sliding_window"] = (1, MAX_TOKENS)
        if self.diffusion_block_size is not None:
            bounds["diffusion_block_size"] = (1, MAX_SIZE)
        return bounds

    def _check_bytes(self) -> None:
        for name in _BYTES:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL_BYTES:
                continue
            if not isinstance(value, (int, float)) or not 0 < value <= 8:
                raise ShapeError(f"{name} must be above 0 and at most 8, not {shown(value)}")

    def _check_layers(self) -> None:
        uniform = self.num_attention_layers is None
        if uniform and self.num_dense_layers + self.num_moe_layers != self.num_layers:
            raise ShapeError(
                f"num_dense_layers {self.num_dense_layers} and num_moe_layers "
                f"{self.num_moe_layers} must add up to num_layers {self.num_layers}"
            )
        if self.num_sliding_layers > self.num_layers:
            raise ShapeError(
                f"num_sliding_layers {self.num_sliding_layers} must be at most "
                f"num_layers {self.num_layers}"
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
            "shared_intermediate_size": self.shared_intermediate_size,
        }
        for name, width in widths.items():
            if width % ranks:
                raise ShapeError(f"tensor_parallel_size {ranks} does not divide {name} {width}")
        self._check_experts_split()

    def _check_experts_split(self) -> None:
        if self.expert_parallel and not self.num_moe_layers:
            raise ShapeError(f"expert_parallel needs experts, and {self.name} has none")
        if self.expert_parallel_size > max(1, self.num_experts):
            raise ShapeError(
                f"expert_parallel over {self.expert_parallel_size} ranks leaves some without one "
                f"of {self.num_experts} experts"
            )
        if self.moe_intermediate_size % self.expert_tensor_parallel_size:
            ranks = f"tensor_parallel_size {self.tensor_parallel_size}"
            if self.data_parallel_size > 1:
                ranks += f" x data_parallel_size {self.data_parallel_size}"
            raise ShapeError(
                f"{ranks} does not divide moe_intermediate_size {self.moe_intermediate_size}: "
                f"use expert_parallel or fewer ranks"
            )


_OPTIONAL_BYTES = ("dense_weight_bytes", "shared_weight_bytes")
_BYTES = (
    "weight_bytes",
    "expert_weight_bytes",
    "lm_head_weight_bytes",
    "router_weight_bytes",
    "kv_bytes",
    *_OPTIONAL_BYTES,
)
