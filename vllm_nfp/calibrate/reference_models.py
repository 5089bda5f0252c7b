"""The models that calibration times.

They span what decides a kernel's time: small and large matrices, few and many query heads for each
KV head, few large and many small experts, 16-bit and FP8 weights. They have the sizes of published
models, a layer or two of each, and dummy weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vllm_nfp.calibrate.plans import ModelPlan
from vllm_nfp.calibrate.points import Kernel
from vllm_nfp.text import hint, same_name

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
"""The fields of a Llama's config.json other than sizes; other families differ in a few."""


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
