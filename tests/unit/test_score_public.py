"""The scorer of public measurements: ratios by hand on made sets, and what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.prediction.public_routing import Drawn, dealt_rows
from benchmarks.prediction.public_sets import usable_points
from benchmarks.prediction.public_tiles import release_of, timed_config
from benchmarks.prediction.score_public import main, score, within
from vllm_nfp.principle import target_of
from vllm_nfp.principle.collective import all_reduce_seconds

ALL_REDUCE = {
    "id": "all_reduce/made", "kind": "all_reduce", "hardware": "H100-SXM",
    "essentials": {"ranks": 2}, "usable": [False, True, True],
}  # fmt: skip
ELEMENTS = (1024, 1 << 20, 1 << 21)


def made(factor: float) -> dict[str, object]:
    """A set that agrees with the prediction but at its last point, which is off by a factor."""
    target = target_of("H100-SXM")
    link = target.hardware.link_bytes_per_second
    seconds = all_reduce_seconds(target.calibration.link, link, 2, 2.0 * np.array(ELEMENTS))
    times = [1e6, seconds[1] * 1e6, seconds[2] * 1e6 / factor]
    return {**ALL_REDUCE, "points": list(map(list, zip(ELEMENTS, times, strict=True)))}


def test_errors_are_those_of_the_ratio_to_the_first_usable_point() -> None:
    (found,) = score([made(1.2)])
    assert found.errors.tolist() == [np.float64(found.errors[0])]
    assert abs(found.errors[0] - 0.2) < 1e-9
    assert within([found]) == [0.0, 0.0, 1.0]


def test_what_cannot_be_predicted_is_left_out() -> None:
    assert not score([made(1) | {"kind": "whole_model_rough"}])
    assert not score([made(1) | {"hardware": "RTX-4060-Laptop (hardware file)"}])
    assert not score([made(1) | {"usable": [True, False, False]}])


def test_the_table_counts_sets_and_points(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(json.dumps({"sets": [made(1.0)]}))
    found = CliRunner().invoke(main, [str(path)])
    assert found.exit_code == 0, found.output
    assert "100%" in found.output


EXPERTS = {
    "id": "routed_experts/made/power_law_1.2", "kind": "routed_experts", "hardware": "H100-SXM",
    "model": "made", "source": "systems/data/h100_sxm/moe/vllm/0.24.0/moe_perf.parquet",
    "essentials": {"hidden": 2048, "inter": 768, "topk": 8, "experts": 128, "tp": 1,
                   "dtype": "bfloat16", "routing": "power_law_1.2",
                   "kernel": ["vllm_unquantizedfusedmoe_triton_tritonexperts"]},
    "usable": [True, True, True], "points": [[1, 1.0], [16, 1.0], [256, 1.0]],
}  # fmt: skip


def test_experts_are_predicted_with_the_rows_that_were_dealt_or_with_a_named_routing() -> None:
    dealt, uniform, typical = (score([EXPERTS], skew)[0].predicted for skew in (None, 0.0, 0.75))
    assert uniform[1] > 1.15 * dealt[1], "a skewed router wakes fewer of 128 experts at 16 tokens"
    assert typical[1] < 0.95 * uniform[1]


def test_dealt_rows_are_as_many_as_tokens_ask_for() -> None:
    for routing in ("balanced", "power_law_1.01", "power_law_1.2"):
        drawn = Drawn(128, 8, routing)
        tokens = np.array([1.0, 2.0, 16.0, 300.0])
        assert drawn.awake(tokens)[:2] == pytest.approx([8, 16])
        assert drawn.blocks(tokens, np.ones(4, np.int64)) == pytest.approx(8 * tokens)
    assert Drawn(128, 8, "balanced").awake(np.array([16.0])) == [128]
    assert Drawn(128, 8, "power_law_1.2").awake(np.array([16.0]))[0] < 70


def test_deepseeks_router_keeps_experts_of_half_the_groups() -> None:
    """Of 8 experts dealt in turns, one in each group of 32, the first four groups' stay; the
    first experts of these fill up."""
    grouped = Drawn(256, 8, "balanced", (8, 4))
    tokens = np.array([1.0, 8.0, 512.0])
    assert Drawn(256, 8, "balanced").awake(tokens).tolist() == [8, 64, 256]
    assert grouped.awake(tokens).tolist() == [8, 35, 128]
    assert grouped.blocks(tokens, np.ones(3, np.int64)) == pytest.approx(8 * tokens)
    assert dealt_rows(EXPERTS | {"model": "DeepSeek-V3"}, (0, 24)).groups == (8, 4)
    assert dealt_rows(EXPERTS | {"model": "DeepSeek-V3"}, (0, 14)).groups is None
    assert dealt_rows(EXPERTS, (0, 24)).groups is None


def timed(kernel: str, source: str = EXPERTS["source"], **sizes: object) -> list[int]:  # type: ignore[assignment]
    """Rows of a block as a set's kernel cuts them, at 8, 64, 160 and 320 tokens."""
    essentials = {**EXPERTS["essentials"], "kernel": [kernel], **sizes}  # type: ignore[dict-item]
    one = EXPERTS | {"source": source, "essentials": essentials}
    tokens = np.array([8.0, 64.0, 160.0, 320.0])
    return timed_config(target_of("H100-SXM").hardware, "none", one, tokens).block_m.tolist()


def test_sets_are_predicted_with_the_tiles_of_what_was_timed() -> None:
    triton = "vllm_unquantizedfusedmoe_triton_tritonexperts"
    assert timed("vllm_x_flashinfer_trtllm_y") == [8, 8, 8, 16]
    assert timed("vllm_gptossmxfp4moe_marlin_marlinexperts") == [8, 8, 16, 32]
    assert timed(triton) == [16, 32, 64, 64]
    assert timed(triton, experts=8, topk=2, inter=7168) == [16, 32, 64, 64]
    assert timed("vllm_fused_moe", "data/a100_sxm/moe/vllm/0.14.0/x") == [16, 16, 64, 64]
    assert release_of({"source": "elsewhere"}) > (1, 0)


def test_experts_that_fit_l2_do_not_count() -> None:
    on_l40s = EXPERTS | {"hardware": "L40S"}  # 8 experts of 9.4 MB fit its 96 MiB
    points, _ = usable_points(on_l40s, target_of("L40S").hardware)
    assert points.tolist() == [16, 256]
