"""What in a server's settings keeps draft lengths from paying, and what to give."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from vllm_nfp import predict
from vllm_nfp.adapter.dispatch import Execution, GraphRules, place
from vllm_nfp.doctor.graph_lint import missing_graphs
from vllm_nfp.draft import lints, served_with
from vllm_nfp.draft.missed_graphs import overlooked
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.draft.rows import Schedule, ScheduleRange
from vllm_nfp.draft.sources import LiveTraffic, Source, from_profile
from vllm_nfp.principle.graphs import DEFAULT_CAPTURE_SIZES, CapturedGraphs
from vllm_nfp.results.profile import Profile


def rules(max_num_seqs: int, sizes: tuple[int, ...] = DEFAULT_CAPTURE_SIZES) -> GraphRules:
    return GraphRules(
        full_decode=True,
        full_mixed=False,
        piecewise=True,
        multi_position=True,
        graphs=CapturedGraphs(sizes),
        max_num_seqs=max_num_seqs,
    )


@pytest.mark.parametrize(
    ("seqs", "sizes", "table", "k", "told"),
    [
        (100, DEFAULT_CAPTURE_SIZES, (), 0, "B=97-100 with K=0 without a FULL"),  # vllm#57355
        (6, (1, 2, 4, 8, 16, 24, 32, 40), (), 6, "B=6 with K=6 without any"),  # vllm#54933
        (256, DEFAULT_CAPTURE_SIZES, (), 7, "B=65-256 with K=7 without any"),
        (8, (1, 2, 4, 8, 16, 24), (), 2, None),  # vllm#53407: 12 tokens run in the graph of 18
        (256, DEFAULT_CAPTURE_SIZES, ((1, 64, 7), (65, 256, 1)), 7, None),
        (256, DEFAULT_CAPTURE_SIZES, ((1, 96, 7), (97, 256, 1)), 7, "B=65-96 with K=7"),
    ],
)
def test_batch_sizes_without_a_graph_and_the_sizes_that_mend_it(
    seqs: int, sizes: tuple[int, ...], table: lints.Tiers, k: int, told: str | None
) -> None:
    lengths = lints.tiers(table, k, seqs)
    found = missing_graphs("0.32.0", rules(seqs, sizes), lengths, 8192)
    if told is None:
        assert found is None
        return
    assert found is not None and told in found and "vLLM 0.32.0" in found
    json_given = re.search(r"'(\{.*\})'", found)
    assert json_given is not None
    mended = tuple(json.loads(json_given[1])["cudagraph_capture_sizes"])
    assert missing_graphs("0.32.0", rules(seqs, mended), lengths, 8192) is None
    assert set(mended) > set(sizes)


def test_steps_that_cannot_occur_need_no_graph() -> None:
    lengths = lints.tiers((), 7, 256)
    found = missing_graphs("0.32.0", rules(256), lengths, 640)
    assert found is not None and "B=65-80 with K=7" in found
    assert missing_graphs("0.32.0", rules(256), lengths, 512) is None


def test_graphs_of_mixed_batches_serve_every_length() -> None:
    mixed = dataclasses.replace(rules(100), full_mixed=True)
    assert missing_graphs("0.32.0", mixed, lints.tiers((), 0, 100), 8192) is None
    assert place(rules(100), 100, 1).execution is Execution.PIECEWISE


NINE = lints.tiers(((1, 8, 4), (9, 32, 2), (33, 256, 1)), 4, 256)


def test_graphs_of_a_table_that_vllm_overlooks() -> None:
    """vLLM's own dispatch does the same: tests/unit/test_length_graphs.py."""
    two = lints.tiers(((1, 2, 5), (3, 128, 1)), 5, 128)
    found = overlooked("0.33.0", "eagle3", DEFAULT_CAPTURE_SIZES, two)
    assert found is not None and found.startswith("vLLM 0.33.0, on its V2")
    assert "of B=3, 5-6, 9, 17-18, 21, 29-30 and others up to 126 with K=1; there the" in found
    for part in (
        "no token for seconds",
        "--nfp-draft-control",
        "mend_graphs",
        "length-graphs.patch",
    ):
        assert part in found
    some = overlooked("0.33.0", "qwen3_next_mtp", DEFAULT_CAPTURE_SIZES, NINE)
    assert some is not None and "B=3, 6 with K=4, B=9-10, 12-13" in some
    assert "; at B=33, 37, 45, 49-50, 57, 65 and others up to 250 the drafter" in some


def test_graphs_are_overlooked_by_tables_of_the_v2_runner_alone() -> None:
    sizes = DEFAULT_CAPTURE_SIZES
    for method, piecewise in (("ngram", True), ("eagle3", False)):
        found = overlooked("0.32.0", method, sizes, NINE, piecewise)
        assert found is not None and "the drafter" not in found, "nothing is replayed wrongly"
    assert overlooked("0.33.0", "eagle3", sizes, lints.tiers((), 4, 256)) is None
    assert overlooked("0.31.0", "eagle3", sizes, NINE) is None
    assert overlooked("0.34.0", "eagle3", sizes, NINE) is None
    assert overlooked("0.33.0", "eagle3", (), NINE) is None
    multiples = tuple(range(8, 513, 8))
    even = lints.tiers(((1, 16, 3), (17, 128, 1)), 3, 128)
    assert overlooked("0.33.0", "eagle3", multiples, even) is None, "2 and 4 share their graphs"


def test_a_table_is_read_as_vllm_reads_it() -> None:
    assert lints.tiers((), 3, 8) == ((1, 8, 3),)
    assert lints.tiers(((1, 4, 9), (7, 8, 1)), 5, 16) == ((1, 6, 5), (7, 16, 1))
    assert lints.tiers(((1, 4, 3), (5, 8, 1)), 3, 4) == ((1, 4, 3),)
    dynamic = pytest.importorskip("vllm.v1.spec_decode.dynamic.utils")
    table = [(1, 4, 9), (7, 8, 1), (9, 12, 0)]
    dense = dynamic.build_dynamic_sd_schedule_lookup(table, 16, 5)
    ours = lints.tiers(table, 5, 16)
    assert [k for first, last, k in ours for _ in range(first, last + 1)] == dense[1:]


def test_drafts_that_fill_a_step() -> None:
    lengths = lints.tiers((), 7, 256)
    assert lints.crowded_step(lengths, 0, 2049) is None
    full = lints.crowded_step(lengths, 0, 2048)
    assert full is not None and "256 fit and no prompt token fits" in full
    crowded = lints.crowded_step(lengths, 0, 1024)
    assert crowded is not None and "128 fit and the others wait" in crowded
    assert lints.crowded_step(lints.tiers((), 0, 256), 0, 128) is None, "nothing is drafted"


@pytest.mark.parametrize(
    ("method", "slots"), [("dflash", 7), ("dspark", 6), ("draft_model", 1), ("eagle3", 0)]
)
def test_slots_are_those_of_the_method(method: str, slots: int) -> None:
    assert lints.drafting_slots(method, 7) == slots


def test_the_rest_is_silent_where_nothing_is_wrong() -> None:
    assert lints.ignored_table(3, 1) is None
    assert "num_speculative_tokens=3" in (lints.ignored_table(3, 2) or "")
    assert lints.piecewise_table(True, True) is None
    assert "VLLM_USE_V2_MODEL_RUNNER=1" in (lints.piecewise_table(False, True) or "")
    assert "vLLM 0.32 or later" in (lints.piecewise_table(False, False) or "")
    assert lints.unsplit_cache(1024) is None
    assert "FLASHINFER" in (lints.unsplit_cache(16384) or "")


def test_the_v1_runner_looks_n_grams_up_on_the_gpu_at_one_length_alone() -> None:
    one, two = ((1, 64, 7),), ((1, 8, 7), (9, 64, 3))
    found = lints.fixed_on_v1("ngram_gpu", two, 7, uses_v2=False, v2_follows=True)
    assert found is not None and "num_speculative_tokens=7" in found and "AssertionError" in found
    assert "VLLM_USE_V2_MODEL_RUNNER=1" in found
    assert lints.fixed_on_v1("ngram_gpu", one, 7, uses_v2=False, v2_follows=True) is None
    assert lints.fixed_on_v1("ngram_gpu", two, 7, uses_v2=True, v2_follows=True) is None
    assert lints.fixed_on_v1("ngram", two, 7, uses_v2=False, v2_follows=True) is None
    older = lints.fixed_on_v1("ngram_gpu", ((1, 64, 3),), 7, uses_v2=False, v2_follows=False)
    assert older is not None and "vLLM 0.32 or later" in older


def test_vllm_asserts_that_length() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    source = Path(found.origin).parent / "v1" / "spec_decode" / "ngram_proposer_gpu.py"
    assert "assert num_speculative_tokens == self.k" in source.read_text(encoding="utf-8")


def of_server(
    profile: Profile, context: int = 512, engines: int = 1, **settings: Any
) -> tuple[Source, Schedule]:
    """The profile as of a server with these settings, with drafts that pay by batch size."""
    device = settings.pop("device", "NVIDIA GeForce RTX 4090")
    environment = dataclasses.replace(
        profile.environment,
        device=dataclasses.replace(profile.environment.device, name=device),
        **{"attention_backends": ("TRITON_ATTN",), "max_num_seqs": 64, **settings},
    )
    source = from_profile(dataclasses.replace(profile, environment=environment), "p.json")
    curves = tuple(dataclasses.replace(curve, context=context) for curve in source.curves[:1])
    live = (LiveTraffic(curves[0]),) * engines
    table = (ScheduleRange(1, 8, 7), ScheduleRange(9, 64, 3))
    return dataclasses.replace(source, curves=curves, live=live), Schedule(table, ())


@pytest.mark.parametrize(
    ("settings", "method", "told"),
    [
        ({"max_num_batched_tokens": 512}, "eagle3", None),
        ({"max_num_batched_tokens": 0}, "eagle3", None),
        ({"max_num_batched_tokens": 256}, "eagle3", "64 sequences with K=3 take 4 tokens each"),
        ({"max_num_batched_tokens": 512}, "dflash", "and 7 slots for drafting each, 704 in all"),
        ({"vllm": "0.33.0", "cudagraph_capture_sizes": (8, 16, 28, 32, 64, 256)},
         "eagle3", "with the capture sizes of the measured server, overlooks"),
        ({"vllm": "0.33.0", "cudagraph_capture_sizes": (8, 16, 28, 32, 64, 256), "engines": 2},
         "eagle3", "with 2 data-parallel engines"),
        ({"vllm": "0.33.0", "cudagraph_capture_sizes": (8, 16, 28, 32, 64, 256),
          "enforce_eager": True}, "eagle3", None),
        ({"vllm": "0.33.0", "cudagraph_capture_sizes": (8, 16, 28, 32, 64, 256),
          "cudagraph_mode": "PIECEWISE"}, "eagle3", None),
        ({"vllm": "0.33.0", "cudagraph_capture_sizes": (8, 16, 28, 32, 64, 256)}, "suffix",
         "7 tokens are drafted at every"),
        ({"engines": 2}, "eagle3", "with 2 data-parallel engines"),
        ({"engines": 2}, "suffix", "num_speculative_tokens=7 up to 7 tokens are drafted at every"),
        ({"attention_backends": ("FLASH_ATTN",), "context": 8192}, "eagle3", "FLASHINFER"),
        ({"attention_backends": ("FLASH_ATTN",), "context": 1024}, "eagle3", None),
        ({"context": 8192}, "eagle3", None),
        ({"attention_backends": ("FLASH_ATTN",), "context": 8192,
          "device": "NVIDIA H100 80GB HBM3"}, "eagle3", None),
        ({"attention_backends": ("FLASH_ATTN",), "context": 8192, "device": "Mine"},
         "eagle3", None),
    ],
)  # fmt: skip
def test_settings_of_the_measured_server(
    settings: dict[str, Any], method: str, told: str | None, dense_profile: Profile
) -> None:
    source, schedule = of_server(dense_profile, **{"max_num_batched_tokens": 8192, **settings})
    found = served_with.cautions(source, schedule, method)
    assert len(found) == (told is not None)
    assert told is None or told in found[0]
    off = Schedule((ScheduleRange(1, 64, 0),), ())
    assert served_with.cautions(source, off, method) == ()


def test_one_length_for_all_is_told_of_where_several_are_best() -> None:
    assert lints.one_length("suffix", [4, 4]) is None
    assert "though 0 to 6 are best" in (lints.one_length("suffix", [6, 3, 0]) or "")


@pytest.mark.parametrize(
    ("device", "backend", "told"),
    [
        ("RTX-4090", None, True),
        ("RTX-4090", "FLASHINFER", False),
        ("H100-SXM", None, False),
    ],
)
def test_a_prediction_with_flash_attention_2_names_the_other_backend(
    device: str, backend: str | None, told: bool
) -> None:
    found = predict("qwen3-8b", device, (1, 4), (16384,), attention_backend=backend)
    warnings = recommend(found, 0.8, draft_method="ngram").warnings
    assert any("compare with --attention-backend FLASHINFER" in w for w in warnings) == told


def test_recommend_tells_of_them(dense_profile: Profile) -> None:
    environment = dataclasses.replace(
        dense_profile.environment, max_num_seqs=64, max_num_batched_tokens=8
    )
    profile = dataclasses.replace(dense_profile, environment=environment)
    assert any("--max-num-batched-tokens 8" in w for w in recommend(profile, 0.9).warnings)
