"""Constants by part and device: which entry a device takes, and where a step uses it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, QWEN_3_30B_A3B

from vllm_nfp.principle import CATALOGUE, Serving, Target, shape_from_config, target_of
from vllm_nfp.principle.attention import attention_terms, backend_by_name
from vllm_nfp.principle.calibration import Calibration, default_calibration
from vllm_nfp.principle.experts import ROUTED_KERNELS
from vllm_nfp.principle.gemm import GemmConstants, gemm_seconds
from vllm_nfp.principle.shape import Gemm
from vllm_nfp.principle.step import Step
from vllm_nfp.principle.terms import sum_terms

FP8_BLOCK = {
    **QWEN_3_30B_A3B,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
H100 = target_of("H100-SXM")


def step(config: dict[str, object], target: Target, ranks: int = 1, batch_size: int = 1) -> Step:
    shape = shape_from_config(config, tensor_parallel_size=ranks)
    return Step(shape, target, Serving(), batch_size, 1024, np.array([1.0, 2.0, 4.0]))


def changed(**constants: object) -> Target:
    return dataclasses.replace(H100, calibration=dataclasses.replace(H100.calibration, **constants))


def test_devices_of_a_generation_share_constants_and_an_unknown_one_takes_those_of_an_h100() -> (
    None
):
    b300, b200 = (target_of(name).calibration for name in ("B300", "B200"))
    assert b300.quantized_experts == b200.quantized_experts
    assert (b200.origins["experts"], b300.origins["experts"]) == ("public kernels", "assumption")
    strange = default_calibration("a device of mine")
    assert strange.gemm == H100.calibration.gemm
    assert set(strange.origins.values()) == {"assumption"}
    assert not strange.fitted
    for hardware in CATALOGUE:
        assert hardware.name == "H100-SXM" or not target_of(hardware.name).calibration.fitted


def test_quantized_experts_have_constants_of_their_own() -> None:
    own = H100.calibration.experts_of("fp8_block")
    assert own != H100.calibration.experts
    slower = dataclasses.replace(own, kernel_seconds=own.kernel_seconds + 2e-6)
    target = changed(quantized_experts={"fp8_block": slower})
    for config, kernels in ((FP8_BLOCK, ROUTED_KERNELS), (QWEN_3_30B_A3B, 0)):
        fixed = [step(config, one).moe_ffn().fixed for one in (H100, target)]
        assert fixed[1] - fixed[0] == pytest.approx(kernels * 2e-6)
    assert Calibration(source="an old file").experts_of("fp8") == Calibration("").experts


def test_latent_attention_pays_for_its_small_kernels() -> None:
    plain = dataclasses.replace(H100.calibration.attention, latent_seconds=0.0, latent_passes=0.0)
    bare = changed(attention=plain)
    for config, layers in ((DEEPSEEK_V3, 61), (LLAMA_3_8B, 0)):
        costs = [step(config, target).attention().fixed for target in (H100, bare)]
        added = layers * H100.calibration.attention.latent_seconds
        assert costs[0] - costs[1] == pytest.approx(added)


def test_ranks_of_a_server_wait_for_each_other() -> None:
    link = dataclasses.replace(H100.calibration.link, skew_seconds=0.0)
    costs = [step(LLAMA_3_8B, target, 2).communication() for target in (H100, changed(link=link))]
    assert (costs[0].seconds() - costs[1].seconds()) == pytest.approx(2 * 2.7e-6)


def test_one_token_may_run_in_another_kernel() -> None:
    gemm, tokens = Gemm(4096, 4096, 2.0, False), np.array([1.0, 2.0])
    plain, fast = (
        gemm_seconds(H100.hardware, constants, gemm, tokens)
        for constants in (GemmConstants(), GemmConstants(one_token=0.9))
    )
    assert fast[0] < 0.95 * plain[0]
    assert fast[1] == plain[1]


def test_more_query_blocks_never_make_a_starved_cache_faster() -> None:
    """On MI300X the unsplit cache of two positions is walked by few tiles; more share its bytes."""
    target, shape = target_of("MI300X"), shape_from_config(LLAMA_3_8B)
    positions = np.array([2.0, 4.0, 8.0, 16.0])
    terms = attention_terms(
        target.hardware,
        shape.attention,
        batch_size=1,
        cached_tokens=16384 + positions,
        positions=positions,
        constants=target.calibration.attention,
        backend=backend_by_name("TRITON_ATTN", target.hardware),
    )
    assert np.all(np.diff(sum_terms(terms)) > -1e-9)
