"""The sizes of a model that decide its step time, read from a Hugging Face config.json.

All sizes are those of the whole model. The properties that end in ``_gemms``, start with ``local``
or are named ``attention`` give one rank's share, see :mod:`vllm_nfp.principle.over_ranks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vllm_nfp.principle import matrices
from vllm_nfp.principle.heads import attention_parts, rank_heads
from vllm_nfp.principle.layer_parts import (
    AttentionHeads,
    AttentionPart,
    Gemm,
    Indexer,
    LatentAttention,
    LinearAttention,
    Matrix,
)
from vllm_nfp.principle.matrices import Counted
from vllm_nfp.principle.over_ranks import OverRanks
from vllm_nfp.principle.shape_checks import check_shape
from vllm_nfp.principle.sizes import MAX_LAYERS, MAX_SIZE, MAX_TOKENS, ShapeError, shown

__all__ = [
    "MAX_LAYERS",
    "MAX_SIZE",
    "MAX_TOKENS",
    "AttentionHeads",
    "Decoding",
    "Gemm",
    "LatentAttention",
    "ModelShape",
    "Quantization",
    "ShapeError",
    "shown",
]

Quantization = Literal["none", "fp8", "fp8_block", "wna16", "mxfp4"]
"""How linear weights are stored: wna16 is GPTQ or AWQ; it and mxfp4 multiply in 16 bits."""

Decoding = Literal["causal", "bidirectional_block"]
"""How the positions of one step see each other: each those before it, or all of them all."""


@dataclass(frozen=True, slots=True)
class ModelShape(OverRanks):
    """Sizes of a decoder-only model.

    ``num_attention_heads``, ``num_kv_heads``, ``head_dim`` and ``intermediate_size`` are those of
    most layers. Where layers differ, ``attention_kinds`` and ``dense_widths`` say how.
    """

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
    recurrent_weight_bytes: float | None = None
    """Bytes per parameter of projections of layers with a state; None: ``weight_bytes``."""
    router_weight_bytes: float = 2.0
    num_attention_layers: int | None = None
    """Layers with attention to a cache; None: every layer has it and one feed-forward block."""
    linear_attention: LinearAttention | None = None
    """Layers with a state instead of a cache."""
    indexer: Indexer | None = None
    """Picks the tokens that attention reads, in a latent cache."""
    attention_gate: bool = False
    """A gate as wide as the attention's output, from one more projection."""
    attention_kinds: tuple[AttentionPart, ...] = ()
    """Kinds of attention, if there are several; the first is that of the sizes above."""
    dense_widths: tuple[tuple[int, int], ...] = ()
    """Layers and width of dense blocks, if widths differ."""
    side_matrices: tuple[tuple[int, Matrix], ...] = ()
    """Other matrices of every step, in 16 bits, with how many layers have each."""
    looked_up_parameters: int = 0
    """Weights of tables beside the embedding, of which a token reads one row."""
    idle_experts: int = 0
    """Experts per layer that the router may choose and that do nothing (LongCat)."""
    expert_hidden_size: int = 0
    """Width of the routed experts' inputs, if projections narrow them; 0: ``hidden_size``."""
    assumptions: tuple[str, ...] = field(default=(), compare=False)
    """Sentences on what the config leaves open or the prediction leaves out."""

    def __post_init__(self) -> None:
        check_shape(self)

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
    def attention(self) -> AttentionHeads:
        """One rank's attention kernel, of the first kind of layers."""
        return self.attentions[0][0]

    @property
    def attentions(self) -> tuple[tuple[AttentionHeads, AttentionPart], ...]:
        """Kinds of attention: what a rank's kernel sees, and which layers have it."""
        return tuple((rank_heads(self, part), part) for part in attention_parts(self))

    @property
    def projection_gemms(self) -> tuple[Gemm, ...]:
        """One rank's query, key, value and output projections of one layer of the first kind."""
        return matrices.latent_or_plain(self)

    @property
    def projections(self) -> tuple[Counted, ...]:
        """One rank's projections of all kinds of attention, with how many layers have them."""
        return matrices.projections(self)

    @property
    def dense_blocks(self) -> tuple[Counted, ...]:
        """One rank's dense feed-forward matrices by width, with how many layers have them."""
        return matrices.dense_blocks(self)

    @property
    def beside(self) -> tuple[Counted, ...]:
        """One rank's matrices that are part of no module."""
        return matrices.beside(self)

    @property
    def dense_ffn_gemms(self) -> tuple[Gemm, ...]:
        """One rank's gate-up (or up alone) and down matrices of a dense layer."""
        return matrices.dense_block(self, self.intermediate_size)

    @property
    def expert_gemms(self) -> tuple[Gemm, ...]:
        """One rank's gate-up (or up alone) and down matrices of one routed expert."""
        return matrices.expert(self)

    @property
    def latent_gemms(self) -> tuple[Gemm, ...]:
        """Projections to and from the routed experts' width, whole on every rank."""
        return matrices.to_experts(self)

    @property
    def indexer_gemms(self) -> tuple[Gemm, ...]:
        """Queries, and key with head weights, of one layer's indexer."""
        return matrices.indexer(self)

    @property
    def linear_attention_gemms(self) -> tuple[Gemm, ...]:
        """One rank's projections of a layer with a state."""
        return matrices.recurrent(self)

    @property
    def shared_gemms(self) -> tuple[Gemm, ...]:
        """One rank's router and shared expert of a layer with experts."""
        return matrices.router_and_shared(self)

    @property
    def lm_head_gemm(self) -> Gemm:
        """One rank's LM head."""
        return matrices.lm_head(self)

    @property
    def total_parameters(self) -> int:
        """Weights of the whole model in its matrices; norms, biases and extra heads left out."""
        whole = replace(self, tensor_parallel_size=1, data_parallel_size=1, expert_parallel=False)
        embedding = 0 if whole.tied_embeddings else whole.lm_head_gemm.parameters
        counted = sum(count * gemm.parameters for count, gemm in whole.matrices())
        twice = sum(part.repeated_parameters(self.hidden_size) for part in self.attention_kinds)
        return embedding + counted - twice + self.looked_up_parameters

    def matrices(self, experts: int | None = None) -> list[tuple[int, Gemm]]:
        """One rank's matrices with how often it has each; the embedding is left out.

        Args:
            experts: routed experts to count in each layer that has them; None: all of the rank.
        """
        return matrices.all_matrices(self, self.local_experts if experts is None else experts)
