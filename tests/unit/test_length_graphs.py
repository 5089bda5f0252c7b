"""Every draft length of a table finds its own CUDA graphs; on vLLM's own manager of graphs."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

pytest.importorskip("vllm")
sys.path.insert(0, str(ROOT))

from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorCudaGraphManager,
)
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
    TargetDependentARSpeculator,
)

from benchmarks import length_graphs
from benchmarks.draft_fleet import EACH_LENGTH, FIXED, MAX_NUM_SEQS

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
    sizes: list[int] = SIZES,
) -> Any:  # fmt: skip
    """vLLM's, as it is on a GPU after capture."""
    longest = max(length for *_, length in table)
    made = object.__new__(kind)
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
        decode_query_len=longest + 1, varlen_decode=varlen, lora_capture_cases=[0],
        ubatch_runner=None, _candidates={}, _capture_descs={}, _graphs_captured=True,
        _lora_dispatch_map={}, _max_lora_case=0,
    )  # fmt: skip
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


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaGraphManager, "_init_candidates", CudaGraphManager._init_candidates)
    length_graphs.install()


def test_vllm_alone_has_the_fault_where_servers_stalled() -> None:
    """16, 32, 64 and 128 requests run with a few less when one has ended."""
    stale = {length: stale_passes(manager(THEN), length) for length in FIXED}
    assert {length for length, found in stale.items() if found} == {1, 2, 3}
    assert {15, 63} <= set(stale[2]) and {15, 31, 63} <= set(stale[3])
    assert {15, 31, 63, 126} <= set(stale[1])
    assert not [n for found in stale.values() for n in found if n <= 4], "1 and 4 are free of it"
    recommended = manager(RECOMMENDED, sizes=RECOMMENDED_SIZES)
    assert {30, 126} <= set(stale_passes(recommended, 1)), "a recommended table has it too"


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("table", [THEN, EACH_LENGTH, RECOMMENDED, [[1, 128, 3]]])
def test_every_length_finds_the_graphs_of_a_server_of_its_own(table: list[list[int]]) -> None:
    made = manager(table)
    for length in {one[2] for one in table}:
        alone = manager([[1, 128, length]])
        assert stale_passes(made, length) == []
        for requests in range(1, MAX_NUM_SEQS + 1):
            step = made.dispatch(requests, requests * (length + 1), length + 1, 0)
            assert step == alone.dispatch(requests, requests * (length + 1), length + 1, 0)
    mixed = made.dispatch(15, 301, None, 0)
    assert (mixed.cg_mode, mixed.num_tokens) == (CUDAGraphMode.PIECEWISE, 304)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_drafter_replays_no_full_graph_on_metadata_of_other_requests(
    guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 3 requests whose 7 drafts are all admitted, under adaptive verification."""
    kind = SpeculatorCudaGraphManager
    monkeypatch.setattr(kind, "dispatch", kind.dispatch, raising=False)
    monkeypatch.setattr(TargetDependentARSpeculator, "propose", lambda self, batch: batch.asked())
    if guarded:
        length_graphs.guard_drafter()
    one = [[1, 128, 7]]
    model, drafter = manager(one, varlen=True), manager(one, kind)
    step = model.dispatch(3, 24, 8, 0, max_query_len=8)
    assert (step.cg_mode, step.num_reqs) == (CUDAGraphMode.FULL, 24)

    def asked(requests: int) -> Any:
        batch = SimpleNamespace(
            num_reqs_after_padding=requests, asked=lambda: drafter.dispatch(3, 24, 8, 0)
        )
        speculator = SimpleNamespace(prefill_cudagraph_manager=drafter)
        return TargetDependentARSpeculator.propose(speculator, batch)

    found = asked(step.num_reqs)
    if guarded:
        assert (found.cg_mode, found.num_tokens) == (CUDAGraphMode.PIECEWISE, 24)
    else:
        assert (found.cg_mode, found.num_reqs) == (CUDAGraphMode.FULL, 3), "vLLM's fault"
    assert asked(3).cg_mode == CUDAGraphMode.FULL
