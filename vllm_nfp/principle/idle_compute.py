"""The idle-compute rule (docs/theory.md): positions are free while arithmetic hides behind memory.

It uses data-sheet peaks, no tile, no wave and no launch, and for experts it forgets that more
tokens wake more of them. The predictor is there to be compared with it.
"""

from __future__ import annotations

from vllm_nfp.principle.hardware import Hardware
from vllm_nfp.principle.modules import check_cell
from vllm_nfp.principle.shape import ModelShape
from vllm_nfp.types import Module


def idle_compute_nfp(
    shape: ModelShape, hardware: Hardware, batch_size: int, context: int, module: Module
) -> int:
    """Positions per sequence that the idle-compute rule calls free; 1 or more, without a cap.

    - dense_ffn, moe_ffn, linear_attention (its projections): N = rho s / (2 B), with s bytes
      per weight.
    - attention: N = rho b / (g f), with b KV bytes and f FLOPs per cached token and query head;
      rho s / (2 g) where keys and values are cached, whatever the batch and context.
    - communication: 1, since transfers have no arithmetic that could idle.
    - model: the N at which the arithmetic time of all matrices and attention equals the time to
      read, at N=1, all weights (k experts of each layer) and the cache once. LM head included.

    Raises:
        PredictionError: if the model has no such module, or for a value out of bounds.
    """
    check_cell(shape, batch_size, context, module)
    if module == "model":
        return _floor(_model_positions(shape, hardware, batch_size, context))
    if module == "communication":
        return 1
    if module == "attention":
        heads = shape.attention
        bytes_per_flop = heads.token_bytes / (heads.group * heads.flops_per_pair)
        return _floor(hardware.ridge(heads.fp8) * bytes_per_flop)
    gemms = {
        "dense_ffn": shape.dense_ffn_gemms,
        "moe_ffn": shape.expert_gemms,
        "linear_attention": shape.linear_attention_gemms,
    }
    gemm = gemms[module][0]
    return _floor(hardware.ridge(gemm.fp8) * gemm.weight_bytes / (2 * batch_size))


def _model_positions(shape: ModelShape, hardware: Hardware, batch_size: int, context: int) -> float:
    read_bytes = 0.0
    position_seconds = 0.0
    for count, gemm in shape.matrices(shape.experts_per_token):
        read_bytes += count * gemm.weight_traffic
        flops = 2.0 * batch_size * gemm.parameters
        position_seconds += count * flops / hardware.peak_flops(gemm.fp8)
    cached = context + 1
    for heads, part in shape.attentions:
        tokens = batch_size * part.layers * heads.kv_heads * part.read(cached)
        read_bytes += tokens * heads.token_bytes
        flops = tokens * heads.group * heads.flops_per_pair
        position_seconds += flops / hardware.peak_flops(heads.fp8)
    if shape.linear_attention is not None:
        linear, ranks = shape.linear_attention, shape.tensor_parallel_size
        read_bytes += batch_size * linear.layers * linear.sequence_bytes / ranks
    return read_bytes / hardware.memory_bytes_per_second / position_seconds


def _floor(positions: float) -> int:
    return max(1, int(positions))
