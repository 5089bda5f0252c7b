"""Every draft length of a table finds its own CUDA graphs; on vLLM's own manager of graphs."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("vllm")
sys.path.insert(0, str(ROOT))

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
from vllm.v1.worker.gpu.spec_decode.eagle.speculator import EagleSpeculator
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorCudaGraphManager,
)
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
    TargetDependentARSpeculator,
)
from vllm.v1.worker.worker_base import WorkerWrapperBase

from benchmarks.drafts.fleet import EACH_LENGTH, FIXED, MAX_NUM_SEQS
from benchmarks.serving import length_graphs as benchmark
from vllm_nfp import releases
from vllm_nfp.adapter import draft_lengths, hooks, length_graphs, versions
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft import lints
from vllm_nfp.draft.missed_graphs import missed, vllm_candidates

THEN = [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 6, 6], [7, 128, 8]]
"""The table of the server that stalled on 2026-11-28."""
RECOMMENDED = [[1, 2, 5], [3, 128, 1]]
RECOMMENDED_SIZES = [
    1, 2, 4, 6, 8, 12, 16, *range(24, 257, 8), *range(272, 513, 16)
]  # fmt: skip
"""What ``recommend`` gave on that day, and the sizes in its server's log."""

SIZES = [
    *range(1, 11), *range(12, 21, 2), *range(24, 41, 4), 42, *range(48, 257, 8),
    *range(272, 353, 16), 360, 368, *range(384, 497, 16), 504, 512,
]  # fmt: skip
"""``cudagraph_capture_sizes`` of the server of 2026-11-28, from its log."""


def manager(
    table: list[list[int]], kind: type = CudaGraphManager, *, varlen: bool = False,
    sizes: list[int] = SIZES, loras: list[int] | None = None,
) -> Any:  # fmt: skip
    """vLLM's, as it is on a GPU after capture."""
    longest = max(length for *_, length in table)
    made: Any = object.__new__(kind)
    vars(made).update(
        compilation_config=SimpleNamespace(
            cudagraph_capture_sizes=sizes, max_cudagraph_capture_size=sizes[-1]
        ),
        vllm_config=SimpleNamespace(
            num_speculative_tokens=longest,
            speculative_config=SimpleNamespace(
                uses_dynamic_speculative_decoding=lambda: len(table) > 1,
                num_speculative_tokens_per_batch_size=table,
            ),
            cache_config=SimpleNamespace(use_kda_recoverssm=False),
        ),
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, max_num_reqs=MAX_NUM_SEQS,
        decode_query_len=longest + 1, varlen_decode=varlen, lora_capture_cases=loras or [0],
        ubatch_runner=None, _candidates={}, _capture_descs={}, _graphs_captured=True,
        _lora_dispatch_map={}, _max_lora_case=0,
    )  # fmt: skip
    made._lora_dispatch_map, made._max_lora_case = made._build_lora_dispatch_map()
    made._init_candidates()
    return made


def stale_passes(made: Any, length: int) -> list[int]:
    """Requests at which the drafter replays a FULL graph after a PIECEWISE step of the model."""
    found = []
    for requests in range(1, MAX_NUM_SEQS + 1):
        step = made.dispatch(requests, requests * (length + 1), length + 1, 0)
        drafter = made.dispatch(requests, step.num_tokens, length + 1, 0)
        if step.cg_mode == CUDAGraphMode.PIECEWISE and drafter.cg_mode == CUDAGraphMode.FULL:
            found.append(requests)
    return found


@pytest.fixture(autouse=True)
def said_nothing_yet() -> None:
    length_graphs._left_alone_once.cache_clear()


@pytest.fixture
def patches() -> Iterator[PatchSet]:
    replaced = PatchSet()
    yield replaced
    replaced.restore()


def mended(table: list[list[int]], sizes: list[int] = SIZES) -> Any:
    made = manager(table, sizes=sizes)
    length_graphs.mend(made)
    return made


def test_vllm_alone_has_the_fault_where_servers_stalled() -> None:
    """16, 32, 64 and 128 requests run with a few less when one has ended."""
    stale = {length: stale_passes(manager(THEN), length) for length in FIXED}
    assert {length for length, found in stale.items() if found} == {1, 2, 3}
    assert {15, 63} <= set(stale[2]) and {15, 31, 63} <= set(stale[3])
    assert {15, 31, 63, 126} <= set(stale[1])
    assert not [n for found in stale.values() for n in found if n <= 4], "1 and 4 are free of it"
    recommended = manager(RECOMMENDED, sizes=RECOMMENDED_SIZES)
    assert {30, 126} <= set(stale_passes(recommended, 1)), "a recommended table has it too"


@pytest.mark.parametrize("table", [THEN, EACH_LENGTH, RECOMMENDED, [[1, 128, 3]]])
def test_every_length_finds_the_graphs_of_a_server_of_its_own(table: list[list[int]]) -> None:
    made = mended(table)
    for length in {one[2] for one in table}:
        alone = manager([[1, 128, length]])
        assert stale_passes(made, length) == []
        for requests in range(1, MAX_NUM_SEQS + 1):
            step = made.dispatch(requests, requests * (length + 1), length + 1, 0)
            assert step == alone.dispatch(requests, requests * (length + 1), length + 1, 0)
    mixed = made.dispatch(15, 301, None, 0)
    assert (mixed.cg_mode, mixed.num_tokens) == (CUDAGraphMode.PIECEWISE, 304)


def test_no_graph_is_chosen_that_was_not_captured_for_the_step() -> None:
    made = mended(THEN)
    captured = {graph for graphs in made._capture_descs.values() for graph in graphs}
    for (tokens, _), graphs in made._candidates.items():
        assert set(graphs) <= captured
        assert all(graph.num_tokens >= tokens for graph in graphs)
        assert len(graphs) == len(set(graphs))
    for requests in range(1, MAX_NUM_SEQS + 1):
        for positions in range(1, 10):
            found = made.dispatch(requests, requests * positions, positions, 0)
            if found.cg_mode is CUDAGraphMode.FULL:
                assert found.uniform_token_count == positions
                assert found.num_reqs >= requests


def test_each_number_of_adapters_has_graphs_of_its_own() -> None:
    made = manager(THEN, loras=[0, 1, 4])
    assert length_graphs.mend(made) == (2, 3, 4, 5, 7, 9)
    for active, captured in ((0, 0), (1, 1), (3, 4), (9, 4)):
        found = made.dispatch(15, 45, 3, active)
        assert (found.num_reqs, found.num_active_loras) == (16, captured)


def test_one_length_and_any_mix_of_lengths_are_left_as_they_are() -> None:
    for made in (manager([[1, 128, 3]]), manager(THEN, varlen=True)):
        before = dict(made._candidates)
        assert length_graphs.mend(made) == ()
        assert made._candidates == before


@pytest.mark.parametrize(
    "change",
    [
        {"num_ubatches": 2},
        {"num_active_loras": 1},
        {"num_tokens": 3},
        {"cg_mode": CUDAGraphMode.PIECEWISE},
        {"num_reqs": 1},
    ],
)
@pytest.mark.parametrize("is_captured", [True, False])
def test_graphs_unlike_those_known_leave_vllms_choice(
    change: dict[str, Any], is_captured: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = manager(THEN)
    odd = dataclasses.replace(made._candidates[45, 0][0], **change)
    made._candidates[45, 0].insert(0, odd)
    if is_captured:
        made._capture_descs[CUDAGraphMode.FULL].append(odd)
    before = dict(made._candidates)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        assert length_graphs.mend(made) == ()
    assert made._candidates == before
    assert len(caplog.records) == 1 and "stays as it is" in caplog.text


@pytest.mark.parametrize("attribute", ["_candidates", "_capture_descs"])
def test_a_manager_without_what_is_known_leaves_vllms_choice(
    attribute: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = manager(THEN)
    delattr(made, attribute)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        assert length_graphs.mend(made) == ()
    assert len(caplog.records) == 1 and f"'{attribute}'" in caplog.text
    made = manager(THEN)
    setattr(made, attribute, [1])
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        assert length_graphs.mend(made) == ()


ASKED = ProbeConfig(mend_graphs=True)


def config(table: list[list[int]] | None = THEN, **changed: Any) -> Any:
    speculation = SimpleNamespace(
        num_speculative_tokens_per_batch_size=table,
        num_speculative_tokens=8,
        enable_adaptive_verification=False,
        uses_dynamic_speculative_decoding=lambda: table is not None,
    )
    return SimpleNamespace(
        **{
            "speculative_config": speculation, "use_v2_model_runner": True,
            "num_speculative_tokens": 8,
            "scheduler_config": SimpleNamespace(max_num_seqs=MAX_NUM_SEQS),
            "compilation_config": SimpleNamespace(
                cudagraph_capture_sizes=SIZES, max_cudagraph_capture_size=SIZES[-1]
            ),
            "parallel_config": SimpleNamespace(tensor_parallel_size=1),
            "cache_config": SimpleNamespace(use_kda_recoverssm=False),
            **changed,
        }
    )  # fmt: skip


def without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    monkeypatch.setattr(cudagraph_utils, "get_pp_group", lambda: rank)
    monkeypatch.setattr(cudagraph_utils, "is_breakable_cudagraph_enabled", lambda: False)
    pool = SimpleNamespace(get_global_graph_pool=lambda: None)
    monkeypatch.setattr(cudagraph_utils, "current_platform", pool)


def made_by_vllm(monkeypatch: pytest.MonkeyPatch, table: list[list[int]] = THEN) -> Any:
    without_a_device(monkeypatch)
    given: Any = config(table)
    return CudaGraphManager(given, "cpu", CUDAGraphMode.FULL_AND_PIECEWISE, 9)


def test_managers_are_mended_when_vllm_makes_them_and_one_line_says_so(
    patches: PatchSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = made_by_vllm(monkeypatch)
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        length_graphs.install(patches, ASKED, config())
        found = [made_by_vllm(monkeypatch) for _ in range(2)]
    for made in found:
        made._graphs_captured = True
        assert made.dispatch(15, 45, 3, 0).num_reqs == 16
    alone._graphs_captured = True
    assert alone.dispatch(15, 45, 3, 0).cg_mode is CUDAGraphMode.PIECEWISE
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "steps with 1, 2, 3, 4, 6, 8 drafts" in caplog.text


def test_lengths_that_draft_control_may_choose_find_theirs_too(
    patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    static = [[1, 1, 8]]
    draft_lengths.install_graphs(patches, ProbeConfig(draft_control=True))
    overlooking = made_by_vllm(monkeypatch, static)
    length_graphs.install(patches, ASKED, config(static))
    made = made_by_vllm(monkeypatch, static)
    for graphs in (overlooking, made):
        graphs._graphs_captured = True
    assert overlooking.dispatch(15, 45, 3, 0).cg_mode is CUDAGraphMode.PIECEWISE
    assert made.dispatch(15, 45, 3, 0).num_reqs == 16


def test_a_worker_gets_it_before_it_makes_its_runner(
    patches: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    before = CudaGraphManager.__init__
    monkeypatch.setattr(
        WorkerWrapperBase, "init_device", lambda self: found.append(CudaGraphManager.__init__)
    )
    hooks.install_graphs(patches, ASKED)
    WorkerWrapperBase.init_device(SimpleNamespace(vllm_config=config(), worker=None))
    assert found[0] is not before
    patches.restore()
    assert CudaGraphManager.__init__ is before


@pytest.mark.parametrize(
    ("settings", "mended", "warned"),
    [
        ({}, False, True),
        ({"mend_graphs": True}, True, False),
        ({"mend_graphs": False}, False, False),
        ({"draft_control": True}, True, False),
        ({"draft_control": True, "mend_graphs": False}, False, False),
        ({"verification_costs": True}, True, False),
    ],
)
def test_the_probe_alone_changes_no_step_and_warns(
    patches: PatchSet, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], mended: bool,
    warned: bool,
) -> None:  # fmt: skip
    """Another CUDA graph may change low-order bits of outputs, which the probe never does."""
    before = CudaGraphManager.__init__
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        length_graphs.install(patches, ProbeConfig(**settings), config())
    assert (CudaGraphManager.__init__ is not before) == mended
    assert ("mend_graphs" in caplog.text) == warned


@pytest.mark.parametrize(
    ("given", "version", "installed"),
    [
        (config(), "0.32.0", True),
        (config(), "0.33.0", True),
        (config(), "0.31.0", False),
        (config(), "0.34.0", False),
        (config(), None, False),
        (config(use_v2_model_runner=False), "0.33.0", False),
        (config(None), "0.33.0", False),
        (config(speculative_config=None), "0.33.0", False),
        (None, "0.33.0", False),
    ],
)
def test_it_is_done_where_it_is_needed_alone(
    patches: PatchSet, monkeypatch: pytest.MonkeyPatch, given: Any, version: str | None,
    installed: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(versions, "installed_version", lambda: version)
    before = CudaGraphManager.__init__
    length_graphs.install(patches, ASKED, given)
    assert (CudaGraphManager.__init__ is not before) == installed
    assert releases.misses_graphs(version) == (version in ("0.32.0", "0.33.0"))


def test_a_configuration_unlike_those_known_installs_nothing(
    patches: PatchSet, caplog: pytest.LogCaptureFixture
) -> None:
    given = config()
    del given.use_v2_model_runner
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        length_graphs.install(patches, ASKED, given)
    assert patches.is_empty
    assert "use_v2_model_runner" in caplog.text and len(caplog.records) == 1


def propose(self: Any, input_batch: Any, requests: int = 3, tokens: int = 24) -> Any:
    """What is guarded of vLLM's, with its call."""
    if input_batch.fails:
        raise RuntimeError("out of memory")
    assert self.prefill_cudagraph_manager is not None
    return self.prefill_cudagraph_manager.dispatch(
        requests, tokens, 8, num_active_loras=0, max_query_len=None
    )


@pytest.fixture
def drafter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's EAGLE drafter with 7 drafts, without a model."""
    monkeypatch.setattr(TargetDependentARSpeculator, "propose", propose)
    made: Any = object.__new__(EagleSpeculator)
    made.prefill_cudagraph_manager = manager([[1, 128, 7]], SpeculatorCudaGraphManager)
    made.dp_size = 1
    return made


def batch(requests: int, fails: bool = False, prompts: bool = False, longest: int = 8) -> Any:
    return SimpleNamespace(
        num_reqs_after_padding=requests, has_prefill=prompts, fails=fails,
        num_scheduled_tokens=np.array([1, longest]),
    )  # fmt: skip


@pytest.mark.parametrize("guarded", [False, True])
def test_a_drafter_replays_no_full_graph_on_metadata_of_other_requests(
    guarded: bool, drafter: Any, patches: PatchSet
) -> None:
    """A step of 3 requests whose 7 drafts are all admitted, under adaptive verification."""
    model = manager([[1, 128, 7]], varlen=True)
    if guarded:
        length_graphs.install(patches, ASKED, config())
    step = model.dispatch(3, 24, 8, 0, max_query_len=8)
    assert (step.cg_mode, step.num_reqs) == (CUDAGraphMode.FULL, 24)
    found = drafter.propose(batch(step.num_reqs))
    if guarded:
        assert (found.cg_mode, found.num_tokens) == (CUDAGraphMode.PIECEWISE, 24)
    else:
        assert (found.cg_mode, found.num_reqs) == (CUDAGraphMode.FULL, 3), "vLLM's fault"
    assert drafter.propose(input_batch=batch(3)).cg_mode == CUDAGraphMode.FULL
    outside = drafter.prefill_cudagraph_manager.dispatch(3, 24, 8, num_active_loras=0)
    assert outside.cg_mode == CUDAGraphMode.FULL


def test_a_drafter_without_a_graph_of_its_tokens_runs_without_one(
    drafter: Any, patches: PatchSet
) -> None:
    """No slot of the KV cache was made for the padding of a PIECEWISE graph."""
    length_graphs.install(patches, ASKED, config())
    found = drafter.propose(batch(61), requests=62, tokens=62 * 8 - 1)
    assert (found.cg_mode, found.num_tokens) == (CUDAGraphMode.NONE, 495)
    assert (found.num_reqs, found.uniform_token_count) == (62, None)


def adaptive_config(**changed: Any) -> Any:
    given = config(None, **changed)
    given.speculative_config.enable_adaptive_verification = True
    given.parallel_config.data_parallel_size = 1
    return given


@pytest.fixture
def adaptive_drafter(drafter: Any, patches: PatchSet, monkeypatch: pytest.MonkeyPatch) -> Any:
    """It has made its graphs as vLLM has it make them under adaptive verification."""
    without_a_device(monkeypatch)
    length_graphs.install(patches, ASKED, adaptive_config())
    made: Any = object.__new__(EagleSpeculator)
    vars(made).update(
        vllm_config=adaptive_config(), device="cpu", num_speculative_steps=7, dp_size=1,
        pcp_manager=None, enable_adaptive_verification=True, target_attn_groups=[],
    )  # fmt: skip
    return made


def with_graphs(drafter: Any) -> Any:
    drafter.init_cudagraph_manager(CUDAGraphMode.FULL_AND_PIECEWISE)
    drafter.prefill_cudagraph_manager._graphs_captured = True
    return drafter


def test_a_drafter_of_cut_steps_replays_the_graph_of_the_models_requests(
    adaptive_drafter: Any,
) -> None:
    """Whatever the number of requests and of admitted drafts; no step is launched in pieces."""
    made = with_graphs(adaptive_drafter)
    model = manager([[1, 128, 7]], varlen=True)
    steps = ((b, b + drafts) for b in (1, 2, 3, 16, 61, 128) for drafts in range(7 * b + 1))
    for requests, tokens in steps:
        if tokens > SIZES[-1]:
            continue
        step = model.dispatch(requests, tokens, None, 0, max_query_len=8)
        found = made.propose(batch(step.num_reqs), requests, step.num_tokens)
        assert found.cg_mode == CUDAGraphMode.FULL
        assert (found.num_tokens, found.num_reqs) == (step.num_tokens, step.num_reqs)


def test_a_drafter_beside_prompts_runs_in_pieces(adaptive_drafter: Any) -> None:
    made = with_graphs(adaptive_drafter)
    for step in (batch(24, prompts=True), batch(24, longest=9)):
        found = made.propose(step)
        assert (found.cg_mode, found.num_tokens) == (CUDAGraphMode.PIECEWISE, 24)
    outside = made.prefill_cudagraph_manager.dispatch(3, 24, 8, num_active_loras=0)
    assert outside.cg_mode == CUDAGraphMode.PIECEWISE, "what is not known to be a decode step"


def layers(support: AttentionCGSupport) -> Any:
    """A group of attention layers whose graphs replay what ``support`` says."""
    builder = SimpleNamespace(get_cudagraph_support=lambda *_: support)
    return SimpleNamespace(
        layer_names=["head"], kv_cache_spec=None, backend=SimpleNamespace,
        get_metadata_builder=lambda _: builder,
    )  # fmt: skip


def test_a_drafter_whose_layers_replay_any_mix_has_such_graphs(adaptive_drafter: Any) -> None:
    adaptive_drafter.target_attn_groups = [[layers(AttentionCGSupport.ALWAYS)]]
    assert with_graphs(adaptive_drafter).prefill_cudagraph_manager.varlen_decode


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dp_size": 2}, "engines choose together"),
        ({"pcp_manager": object()}, "its tokens are spread over ranks"),
        ({"enable_adaptive_verification": False}, "the model's graphs are of one length"),
        ({"target_attn_groups": [[layers(AttentionCGSupport.NEVER)]]}, "a layer of the drafter's"),
    ],
)
def test_other_drafters_keep_the_graphs_that_vllm_gives_them(
    change: dict[str, Any], why: str, adaptive_drafter: Any
) -> None:
    vars(adaptive_drafter).update(change)
    made = with_graphs(adaptive_drafter).prefill_cudagraph_manager
    assert not made.varlen_decode, why


def test_a_drafter_that_proposes_in_a_way_of_its_own_keeps_its_graphs(
    adaptive_drafter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells its manager which steps are decode steps."""
    monkeypatch.setattr(EagleSpeculator, "propose", propose, raising=False)
    assert not with_graphs(adaptive_drafter).prefill_cudagraph_manager.varlen_decode


def test_a_drafter_that_can_make_no_other_graphs_keeps_vllms(
    adaptive_drafter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    del adaptive_drafter.pcp_manager
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        made = with_graphs(adaptive_drafter).prefill_cudagraph_manager
    assert not made.varlen_decode
    assert len(caplog.records) == 1 and "pcp_manager" in caplog.text


def test_a_drafter_whose_step_fails_leaves_nothing_behind(drafter: Any, patches: PatchSet) -> None:
    length_graphs.install(patches, ASKED, config())
    with pytest.raises(RuntimeError, match="out of memory"):
        drafter.propose(batch(24, fails=True))
    graphs = drafter.prefill_cudagraph_manager
    assert graphs.dispatch(3, 24, 8, 0).cg_mode == CUDAGraphMode.FULL
    drafter.prefill_cudagraph_manager = None
    with pytest.raises(AssertionError):
        drafter.propose(batch(24))


def test_a_drafter_unlike_those_known_is_not_guarded(
    drafter: Any, patches: PatchSet, caplog: pytest.LogCaptureFixture
) -> None:
    length_graphs.install(patches, ASKED, config())
    drafter.dp_size = 2
    assert drafter.propose(batch(24)).cg_mode == CUDAGraphMode.FULL, "engines choose together"
    assert not caplog.text
    del drafter.dp_size
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for _ in range(2):
            assert drafter.propose(batch(24)).cg_mode == CUDAGraphMode.FULL
    assert len(caplog.records) == 1 and "dp_size" in caplog.text


@pytest.mark.parametrize(
    ("table", "sizes"), [(THEN, SIZES), (RECOMMENDED, RECOMMENDED_SIZES), ([[1, 128, 3]], SIZES)]
)
def test_what_is_told_of_a_table_is_what_vllm_does(
    table: list[list[int]], sizes: list[int]
) -> None:
    real, after = manager(table, sizes=sizes), mended(table, sizes)
    tiers = lints.tiers([tuple(row) for row in table], max(k for *_, k in table), MAX_NUM_SEQS)  # type: ignore[misc]
    ours = {
        key: [(g.num_tokens, g.num_reqs, g.uniform_token_count) for g in graphs]
        for key, graphs in vllm_candidates(sizes, tiers, piecewise=True).items()
    }
    assert {
        key: sorted((g.num_tokens, g.num_reqs, g.uniform_token_count) for g in graphs[:-1])
        for key, graphs in real._candidates.items()
    } == {key: sorted(graphs[:-1]) for key, graphs in ours.items()}
    found = {one.draft_length: one for one in missed(sizes, tiers, piecewise=True)}
    for first, last, k in tiers:
        inside = set(range(first, last + 1))
        assert inside & set(stale_passes(real, k)) == set(found[k].stale if k in found else ())
        overlooked = [
            b for b in inside
            if real.dispatch(b, b * (k + 1), k + 1, 0).cg_mode is not CUDAGraphMode.FULL
            and after.dispatch(b, b * (k + 1), k + 1, 0).cg_mode is CUDAGraphMode.FULL
        ]  # fmt: skip
        assert sorted(overlooked) == list(found[k].batch_sizes if k in found else ())
    assert bool(found) == (len(table) > 1)


@pytest.mark.parametrize(("as_is", "mends"), [("1", False), ("0", True), (None, True)])
def test_a_benchmark_has_it_on_all_servers_or_on_none(
    as_is: str | None, mends: bool, monkeypatch: pytest.MonkeyPatch, patches: PatchSet
) -> None:
    if as_is is None:
        monkeypatch.delenv(benchmark.AS_IS_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(benchmark.AS_IS_VARIABLE, as_is)
    monkeypatch.setattr(benchmark, "PatchSet", lambda: patches)
    monkeypatch.setattr(length_graphs, "install", length_graphs.install)
    before = CudaGraphManager.__init__
    benchmark.settle()
    length_graphs.install(patches, ASKED, config())
    assert (CudaGraphManager.__init__ is not before) == mends
