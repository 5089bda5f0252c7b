"""What dense products miss by tokens and base, and how far repeated products agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import ROOT

from benchmarks.prediction.dense_products import Timed, by_tokens, own_timings, repeated
from benchmarks.prediction.public_seconds import dense_seconds
from vllm_nfp.principle import target_of

SIZES = {"hidden": 4096, "inter": 14336, "tp": 1, "dtype": "bfloat16"}
TOKENS = np.array([1.0, 2, 4, 64, 128, 256])


def made(**factors: float) -> dict[str, Any]:
    """A set of vidur's that the prediction describes but at t1 or t128, off by a factor."""
    target = target_of("H100-SXM")
    times = 1e6 * dense_seconds(target.hardware, target.calibration.gemm, SIZES, TOKENS)
    for name, factor in factors.items():
        times[float(name[1:]) == TOKENS] *= factor
    return {"id": "dense_products/H100-SXM/made TP1/bfloat16/", "kind": "dense_products",
            "hardware": "H100-SXM", "source": "microsoft/vidur", "essentials": SIZES,
            "points": [list(pair) for pair in zip(TOKENS, times, strict=True)],
            "usable": [True] * len(TOKENS)}  # fmt: skip


def row(one: dict[str, Any]) -> list[str]:
    return [cell.strip() for cell in by_tokens([one]).splitlines()[-1].split("|")[1:-1]]


def test_a_slow_first_token_is_no_matter_of_the_median() -> None:
    head = ["H100-SXM", "bfloat16", "vidur", "1", "5"]
    everything = "100 / 100 / 100 / 100 %"
    assert row(made()) == [*head, everything, "100 %", everything]
    assert row(made(t1=2.0)) == [*head, "0 / 0 / 0 / 0 %", "0 %", everything]


def test_points_count_up_to_their_tokens() -> None:
    assert row(made(t128=1.5))[5] == "100 / 75 / 80 / 80 %"


def test_repeated_products_are_compared_at_common_tokens() -> None:
    product = ("H100-SXM", "bfloat16", 4096, 14336)
    one = Timed(product, "vidur", np.array([1.0, 2, 8, 64]), np.array([1.0, 1.0, 1.0, 1.3]))
    other = Timed(product, "own", np.array([1.0, 8, 64, 99]), np.array([2.0, 2.0, 2.0, 9.0]))
    alone = Timed((*product[:3], 1), "own", one.tokens, one.seconds)
    lines = repeated([one, other, alone]).splitlines()
    assert lines[2:] == ["| H100-SXM | bfloat16 | own and vidur | 1 | 2 | 50 % | 50 % |"]


def test_own_kernels_are_those_of_dense_blocks() -> None:
    found = list(own_timings(ROOT / "benchmarks" / "results"))
    assert ("H100-SXM", "bfloat16", 2048, 8192) in {one.product for one in found}
    assert {one.product[1] for one in found} == {"bfloat16", "fp8"}
