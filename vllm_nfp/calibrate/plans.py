"""Which models calibration times, and at which points.

The reference models span what decides a kernel's time: small and large matrices, few and many
query heads for each KV head, few large and many small experts, 16-bit and FP8 weights. They carry
the sizes of published models, a layer or two of each, and dummy weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vllm_nfp.calibrate.points import Kernel, Series
from vllm_nfp.text import hint, same_name

PASSES = 5
MAX_TOKENS = 2048
"""Tokens of the largest step."""
MAX_SEQS = 256
MAX_MODEL_LEN = 17408
ATTENTION_TILE = 64
"""Rows between the steps of most attention kernels; only the choice of points depends on it."""

TOKENS = tuple(
    sorted(
        {
            *range(1, 65),
            *range(72, 257, 8),
            *(edge + 1 for edge in (64, 80, 96, 112, 128, 144, 160, 192, 224, 256, 320, 384)),
            *range(272, 513, 16),
            *range(576, 1025, 64),
        }
    )
)
"""Tokens of a step, for kernels that see nothing else."""
CELLS = (
    *((b, 1024) for b in (1, 8, 32, 128)),
    *((b, 4096) for b in (1, 8, 32)),
    *((b, 16384) for b in (1, 8)),
)
"""(batch size, context) of attention; the KV cache of a plan must hold the largest product."""
BLOCK_CELLS = ((1, 4096), (8, 4096), (32, 1024))
"""The same for blocks that see all of themselves, as diffusion decodes them."""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model's part of a calibration.

    Attributes:
        label: name of its file and its place in messages; letters, digits, dots and hyphens.
        config: its config.json.
        kernels: what is timed.
        kv_tokens: tokens that the KV cache must hold.
        arguments: further arguments of ``vllm.LLM``, such as a quantization.
        small: few points and a small cache, to try it on a CPU.
    """

    label: str
    config: Mapping[str, Any]
    kernels: tuple[Kernel, ...] = tuple(Kernel)
    kv_tokens: int = 160_000
    arguments: Mapping[str, Any] = field(default_factory=dict)
    small: bool = False

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        given = self.config.get("head_dim")
        return int(given or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the KV cache, all layers, in 16 bits."""
        token_bytes = 4 * self.config["num_key_value_heads"] * self.head_dim
        return int(self.config["num_hidden_layers"] * token_bytes * self.kv_tokens)

    @property
    def fp8(self) -> bool:
        """Whether it needs a device with FP8."""
        return "fp8" in (self.arguments.get("quantization"), self.arguments.get("kv_cache_dtype"))

    def to_json(self) -> str:
        """The plan as JSON that :meth:`from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ModelPlan:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "kernels": tuple(Kernel(k) for k in values["kernels"])})


class KnowsModules(Protocol):
    """What the choice of series needs to know of a bench."""

    def has(self, kernel: Kernel) -> bool:
        """Whether the model has such a module."""
        ...

    def linear_names(self) -> tuple[str, ...]:
        """Names of the linear layers that all layers have."""
        ...


def series_of(bench: KnowsModules, plan: ModelPlan) -> Iterator[tuple[Series, Sequence[int]]]:
    """What is timed of a model, and at which N."""
    tokens: Sequence[int] = (1, 2, 4, 8) if plan.small else TOKENS
    for kernel in (Kernel.DENSE_FFN, Kernel.MOE_FFN, Kernel.LM_HEAD):
        if kernel in plan.kernels and bench.has(kernel):
            yield Series(kernel), tokens
    for name in bench.linear_names() if Kernel.LINEAR in plan.kernels else ():
        yield Series(Kernel.LINEAR, name=name), tokens
    if Kernel.ATTENTION in plan.kernels:
        yield from _attention(plan)


def _attention(plan: ModelPlan) -> Iterator[tuple[Series, Sequence[int]]]:
    group = plan.config["num_attention_heads"] // plan.config["num_key_value_heads"]
    positions = (1, 2, 4) if plan.small else attention_positions(group)
    for batch_size, context in ((1, 64), (2, 128)) if plan.small else CELLS:
        yield Series(Kernel.ATTENTION, batch_size, context), positions
    for batch_size, context in ((1, 64),) if plan.small else BLOCK_CELLS:
        yield Series(Kernel.ATTENTION, batch_size, context, causal=False), positions


def attention_positions(group: int) -> tuple[int, ...]:
    """N for attention with ``group`` query heads per KV head: dense, with each step's two sides."""
    edges = [math.floor(ATTENTION_TILE * k / group) for k in range(1, 9)]
    near = {n for edge in edges for n in (edge, edge + 1) if 1 <= n <= 129}
    return tuple(sorted({*range(1, 18), *range(18, 41, 2), *range(44, 65, 4), 80, 96, 128, *near}))


LLAMA_FIELDS: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "max_position_embeddings": 40960,
    "vocab_size": 128256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""What the config.json of a Llama says beside its sizes; other families differ in a few fields."""


def size_fields(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int
) -> dict[str, Any]:
    """The fields of a config.json that hold a decoder's sizes."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_LLAMA_8B: Mapping[str, Any] = {**LLAMA_FIELDS, **size_fields(4096, 14336, 2, 32, 8)}
REFERENCE: tuple[ModelPlan, ...] = (
    ModelPlan("llama-3.1-8b", _LLAMA_8B),
    ModelPlan(
        "qwen3-1.7b",
        {
            **LLAMA_FIELDS,
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 128,
            "vocab_size": 151936,
            **size_fields(2048, 6144, 4, 16, 8),
        },
    ),
    ModelPlan("llama-3.1-70b", {**LLAMA_FIELDS, **size_fields(8192, 28672, 1, 64, 8)}),
    ModelPlan(
        "qwen3-30b-a3b",
        {
            **LLAMA_FIELDS,
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 128,
            "vocab_size": 151936,
            **size_fields(2048, 6144, 1, 32, 4),
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
    ModelPlan(
        "mixtral-8x7b",
        {
            **LLAMA_FIELDS,
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            **size_fields(4096, 14336, 1, 32, 8),
        },
        kernels=(Kernel.MOE_FFN,),
        kv_tokens=20_000,
    ),
    ModelPlan(
        "llama-3.1-8b-fp8",
        _LLAMA_8B,
        arguments={"quantization": "fp8", "kv_cache_dtype": "fp8"},
    ),
)
"""What ``vllm-nfp calibrate`` times on a GPU."""

_TINY: Mapping[str, Any] = {
    **LLAMA_FIELDS,
    **size_fields(256, 512, 2, 4, 2),
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}
TRIAL: tuple[ModelPlan, ...] = (
    ModelPlan("tiny", _TINY, small=True),
    ModelPlan(
        "tiny-moe",
        {
            **_TINY,
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        small=True,
    ),
)
"""Models small enough for a CPU, where calibration runs only to be tried."""


def choose(plans: Sequence[ModelPlan], labels: Collection[str]) -> tuple[ModelPlan, ...]:
    """The plans of these labels, all if there are none.

    Raises:
        ValueError: for a label that no plan has.
    """
    known = [plan.label for plan in plans]
    wanted = {label: same_name(label, known) for label in labels}
    for label, found in wanted.items():
        if found is None:
            raise ValueError(
                f"no model {label!r:.80} to calibrate with{hint(label, known)}: choose of "
                f"{', '.join(known)}"
            )
    return tuple(plan for plan in plans if not labels or plan.label in wanted.values())
