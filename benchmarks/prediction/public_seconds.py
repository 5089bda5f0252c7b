"""Predicted seconds of what the sets of a file of public measurements timed, by their kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.public_routing import dealt_rows
from benchmarks.prediction.public_tiles import release_of, timed_config
from vllm_nfp.principle import Serving, shape_from_config
from vllm_nfp.principle.attention import attention_terms, backend_by_name, fixed_seconds
from vllm_nfp.principle.collective import all_reduce_seconds
from vllm_nfp.principle.experts import ROUTED_KERNELS, expert_terms
from vllm_nfp.principle.gemm import GemmConstants, gemm_seconds
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.principle.routing import Routed
from vllm_nfp.principle.shape import AttentionHeads, Gemm, Quantization
from vllm_nfp.principle.step import Step
from vllm_nfp.principle.terms import sum_terms

Floats = NDArray[np.float64]
Set = Mapping[str, Any]
TYPES: Mapping[str, tuple[Quantization, float]] = {
    "bfloat16": ("none", 2.0),
    "fp8": ("fp8", 1.0),
    "fp8_block": ("fp8_block", 1.0 + 4 / 128**2),
    "w4a16_mxfp4": ("mxfp4", 0.5 + 1 / 32),
}
"""How the types of the file are stored; others are left out."""


def _dense(target: Target, one: Set, tokens: Floats) -> Floats | None:
    sizes = one["essentials"]
    if sizes["dtype"] not in TYPES:
        return None
    return dense_seconds(target.hardware, target.calibration.gemm, sizes, tokens)


def dense_seconds(
    hardware: Hardware, constants: GemmConstants, sizes: Mapping[str, Any], tokens: Floats
) -> Floats:
    """Gate-up and down product of a set."""
    quantization, weight_bytes = TYPES[sizes["dtype"]]
    gemms = gated(sizes, weight_bytes, quantization != "none")
    found: Floats = np.sum(
        [gemm_seconds(hardware, constants, gemm, tokens) for gemm in gemms], axis=0
    )
    return found


def _experts(target: Target, one: Set, tokens: Floats) -> Floats | None:
    return expert_seconds(target, one, tokens, dealt_rows(one, release_of(one)))


def expert_seconds(target: Target, one: Set, tokens: Floats, routing: Routed) -> Floats | None:
    """Routed experts of a set, if rows reach them so; None for a type that is not known."""
    sizes = one["essentials"]
    if sizes["dtype"] not in TYPES:
        return None
    quantization, weight_bytes = TYPES[sizes["dtype"]]
    constants = target.calibration.experts_of(quantization)
    terms = expert_terms(
        target.hardware,
        constants,
        gated(sizes, weight_bytes, quantization in ("fp8", "fp8_block")),
        tokens,
        routing,
        hidden_size=sizes["hidden"],
        config=timed_config(target.hardware, quantization, one, tokens),
    )
    return ROUTED_KERNELS * constants.kernel_seconds + sum_terms(terms)


def gated(sizes: Mapping[str, Any], weight_bytes: float, fp8: bool) -> tuple[Gemm, Gemm]:
    """Gate-up and down product."""
    width, hidden = sizes["inter"] // sizes["tp"], sizes["hidden"]
    return Gemm(hidden, 2 * width, weight_bytes, fp8), Gemm(width, hidden, weight_bytes, fp8)


def _attention(target: Target, one: Set, batch_sizes: Floats) -> Floats | None:
    sizes = one["essentials"]
    kv_heads, head_dim = sizes["kv_heads"], sizes["head_dim"]
    heads = AttentionHeads(
        kv_heads, sizes["heads"] // kv_heads, head_dim, head_dim, 4.0 * head_dim, False
    )
    backend = backend_by_name(sizes["predicted_backend"], target.hardware)
    single = np.ones(1)

    def seconds(batch_size: float) -> float:
        terms = attention_terms(
            target.hardware,
            heads,
            batch_size=int(batch_size),
            cached_tokens=sizes["context"] + single,
            positions=single,
            constants=target.calibration.attention,
            backend=backend,
        )
        return float(sum_terms(terms)[0])

    fixed = fixed_seconds(heads, target.calibration.attention)
    return np.array([fixed + seconds(batch_size) for batch_size in batch_sizes])


DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    "v_head_dim": 128, "first_k_dense_replace": 1, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
}  # fmt: skip
BLOCK_SCALES = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def _latent(target: Target, one: Set, batch_sizes: Floats) -> Floats | None:
    """Attention and projections of a layer of DeepSeek-V3 with these heads on a rank."""
    sizes = one["essentials"]
    if sizes["dtype"] not in ("bfloat16", "fp8_block"):
        return None
    heads = {name: sizes["heads"] for name in ("num_attention_heads", "num_key_value_heads")}
    scales = {"quantization_config": BLOCK_SCALES} if sizes["dtype"] == "fp8_block" else {}
    shape = shape_from_config({**DEEPSEEK_V3, **heads, **scales})
    serving = Serving(sizes["predicted_backend"], CapturedGraphs())
    single = np.ones(1)

    def seconds(batch_size: float) -> float:
        step = Step(shape, target, serving, int(batch_size), sizes["context"], single)
        parts = step.parts()
        return float((parts["attention"] + parts["projections"]).seconds()[0])

    return np.array([seconds(batch_size) for batch_size in batch_sizes])


def _all_reduce(target: Target, one: Set, elements: Floats) -> Floats | None:
    sizes = one["essentials"]
    link = target.hardware.link_bytes_per_second
    return all_reduce_seconds(target.calibration.link, link, sizes["ranks"], 2.0 * elements)


KINDS = {
    "dense_products": _dense,
    "routed_experts": _experts,
    "attention_vs_batch": _attention,
    "mla_module_vs_batch": _latent,
    "all_reduce": _all_reduce,
}
"""Seconds at the x of a set, by its kind; None where the set cannot be predicted."""
