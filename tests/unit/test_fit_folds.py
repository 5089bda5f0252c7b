"""Sets that are left out in turn, what then ships, and the split's own constants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.prediction.compare_constants import exchanged, profile_errors
from benchmarks.prediction.fit_folds import Folded, errors_with, folded, table
from benchmarks.prediction.fit_public import Fit, fits, fitted
from benchmarks.prediction.public_seconds import dense_seconds
from benchmarks.prediction.public_sets import family_of, is_seen, model_of
from benchmarks.prediction.split_constants import split_target
from vllm_nfp.principle import target_of
from vllm_nfp.principle.collective import BOUNDS, all_reduce_seconds
from vllm_nfp.principle.tiled import TiledConstants

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LINK = Fit("link", "H200", "all_reduce", {"custom_seconds": 0.5}, BOUNDS)
SIZES = (4096, 1 << 16, 1 << 20)


def named(kind: str, name: str, device: str = "L40S", dtype: str = "bfloat16") -> dict[str, Any]:
    return {"kind": kind, "hardware": device, "id": f"{kind}/{device}/{name}/{dtype}/x",
            "essentials": {"dtype": dtype}}  # fmt: skip


def all_reduce(ranks: int, seconds: float) -> dict[str, Any]:
    """A set that follows the model with this fixed time."""
    target = target_of("H200")
    link = replace(target.calibration.link, custom_seconds=seconds)
    rate = target.hardware.link_bytes_per_second
    times = 1e6 * all_reduce_seconds(link, rate, ranks, 2.0 * np.array(SIZES))
    return {"id": f"all_reduce/H200/R{ranks}/bf16/", "kind": "all_reduce", "hardware": "H200",
            "essentials": {"ranks": ranks}, "usable": [True] * 3,
            "points": [list(pair) for pair in zip(SIZES, times, strict=True)]}  # fmt: skip


def test_a_fold_leaves_out_a_family_or_a_model_at_one_size() -> None:
    dense = [named("dense_products", name) for name in ("CodeLlama-34b TP2", "Meta-Llama-3-8B TP2")]
    assert [family_of(one) for one in dense] == ["Llama", "Llama"]
    assert len({model_of(one) for one in dense}) == 2
    fp4 = named("routed_experts", "gpt-oss-120b TP2", dtype="w4a16_mxfp4")
    assert family_of(fp4) == "gpt-oss-120b TP2", "the only family is told apart by its sizes"


def test_a_device_with_own_runs_has_seen_no_public_set() -> None:
    assert is_seen(named("routed_experts", "Mixtral-8x7B TP2", "B200"))
    assert not is_seen(named("routed_experts", "Mixtral-8x7B TP2", "H200"))
    assert is_seen(named("routed_experts", "Mixtral-8x7B TP2", "H200", "fp8"))
    assert not is_seen({**named("attention_vs_batch", "Llama-3.1-8B", "H100-SXM")})


def test_what_is_left_out_is_predicted_by_the_others() -> None:
    pytest.importorskip("scipy")
    same = folded(LINK, [all_reduce(ranks, 9e-6) for ranks in (2, 4, 8)])
    assert same is not None
    assert (same.families, len(same.without_family), len(same.unseen)) == (3, 6, 2)
    assert np.abs(same.without_family).max() < 0.03
    other = folded(LINK, [all_reduce(2, 9e-6), all_reduce(4, 9e-6), all_reduce(8, 90e-6)])
    assert other is not None
    assert np.abs(other.without_family[-2:]).max() > 0.1, "its own times have not been seen"
    assert folded(LINK, [all_reduce(2, 9e-6)]) is None, "nothing is left to fit to"


def test_the_fit_to_all_ships_only_if_it_predicts_unseen_points_better() -> None:
    good, bad = np.zeros(4), np.full(4, 0.2)
    better = Folded(LINK, 3, 3, bad, good, good, bad, "split")
    assert (better.takes_all, replace(better, split=good).takes_all) == (True, False)
    assert replace(better, split=good, otherwise="assumption").row().endswith("| assumption |")
    assert table([better]).splitlines()[-1] == (
        "| link | H200 | 3 | 4 | 0 % | 3 | 100 % | 4 | 0 % | 100 % | all |"
    )


def test_tiles_are_fitted_to_the_sets_that_have_points() -> None:
    pytest.importorskip("scipy")
    (fit,) = (one for one in fits() if (one.part, one.device) == ("gemm.tiles", "A100-SXM4-80GB"))
    sizes = {"hidden": 4096, "inter": 14336, "tp": 1, "dtype": "bfloat16"}
    one = {**named("dense_products", "made TP1", fit.device), "essentials": sizes}
    target, tokens = target_of(fit.device), np.array([1.0, 64.0, 128.0, 192.0, 256.0, 384.0])
    true = replace(target.calibration.gemm, tiles=TiledConstants(flops=0.6, l2_bandwidth=2.0))
    seconds = dense_seconds(target.hardware, true, sizes, tokens)
    points = [list(pair) for pair in zip(tokens, 1e6 * seconds, strict=True)]
    full = {**one, "points": points, "usable": [True] * len(points)}
    empty = {**full, "id": "dense_products/x/empty/", "usable": [False] * len(points)}
    found = fitted(fit, [full, empty])
    assert np.abs(errors_with(fit, found, full)).max() < 0.05
    assert len(errors_with(fit, found, empty)) == 0


def test_the_split_scores_constants_that_saw_only_its_sets() -> None:
    split, ships = (target("L40S").calibration for target in (split_target, target_of))
    assert split.experts != ships.experts
    assert split.experts_of("fp8_block") == ships.experts_of("fp8_block")
    assert split.gemm != ships.gemm
    assert split.attention == ships.attention
    assert split_target("GB300") == target_of("GB300")


def test_constants_are_compared_on_profiles_a_part_at_a_time() -> None:
    old = target_of("H200")
    new = target_of(str(RESULTS / "2026-11-28-h200-calibration" / "h200.json")).calibration
    found = exchanged(old.calibration, new)
    assert found["gemm"].gemm.fp8 == old.calibration.gemm.fp8
    assert found["gemm.fp8"].gemm.bandwidth == old.calibration.gemm.bandwidth
    profile = RESULTS / "2026-11-27-h200-rebuilt-house" / "fp8-profile-1.json.gz"
    shares = {}
    for name in ("built-in", "gemm"):
        target = replace(old, calibration=found[name])
        parts = [errors for key, errors in profile_errors(profile, target) if "dense" in key]
        shares[name] = float(np.mean(np.abs(np.concatenate(parts)) <= 0.1))
    assert shares["built-in"] == shares["gemm"] > 0.6, "FP8 weights take no BF16 product"
