"""Steps that cut drafts: given out without vLLM's ranking, on the manager of the installed vLLM."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from test_lockstep import Hub
from test_verification_feed import DRAFTS, started
from test_whole_steps import Steps

from vllm_nfp.adapter import cut_steps, versions
from vllm_nfp.adapter.cut_steps import Capture, Ranking
from vllm_nfp.adapter.verification import AdaptiveVerification
from vllm_nfp.config import ProbeConfig
from vllm_nfp.session.verification import follow_verification

pytestmark = pytest.mark.skipif(
    not versions.is_since((0, 32)), reason="this vLLM has no adaptive verification"
)

CUT = [
    ([DRAFTS] * 4, [1] * 4, 5), ([DRAFTS, 2, DRAFTS], [1, 1, 1], 9), ([3], [1], 2), ([3], [1], 0),
    ([DRAFTS, 0], [1, 40], 1), ([DRAFTS] * 8, [1] * 8, 31), ([DRAFTS] * 8, [1] * 8, 1),
    ([1, 2, 3, 4, 0], [1, 1, 1, 1, 7], 6),
]  # fmt: skip


class Captured:
    """Takes what a CUDA graph would hold; counts how often it runs."""

    def __init__(self) -> None:
        self.made = self.runs = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.made += 1
        run()  # to warm up

        def replay() -> None:
            self.runs += 1
            run()

        return replay


def hook(steps: Steps, capture: Capture) -> None:
    verification = AdaptiveVerification(steps.manager)
    verification.spare_giving_out(steps.patches, verification.cut_steps(capture))


def pair() -> tuple[Steps, Steps, Captured]:
    """vLLM's own way, and this one with the same confidences."""
    plain, spared, captured = Steps(), Steps(), Captured()
    spared.manager._confidence_probs.copy_(plain.manager._confidence_probs)
    hook(spared, captured)
    plain.own = spared.own = captured.runs = 0
    return plain, spared, captured


def test_results_are_vllms_and_its_operations_do_not_run() -> None:
    plain, spared, captured = pair()
    for drafts, others, verified in CUT:
        found = spared.step(drafts, others, verified)
        assert found == plain.step(drafts, others, verified)
        # vLLM leaves what is behind the batch as it was.
        count = len(drafts)
        capacities = [one.manager._batch_draft_capacity[:count] for one in (spared, plain)]
        assert capacities[0].tolist() == capacities[1].tolist()
    assert (plain.own, spared.own, captured.runs) == (len(CUT), 0, len(CUT))


def test_what_a_graph_reads_is_kept_as_long_as_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    class Noted(Ranking):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.extend(weakref.ref(tensor) for tensor in vars(self).values())

    class Graph:
        """Holds none of the tensors that it reads, as a CUDA graph."""

        def __init__(self, run: Callable[[], None]) -> None:
            run()

        def replay(self) -> None:
            """Nothing is asked of it here."""

    monkeypatch.setattr(cut_steps, "Ranking", Noted)
    monkeypatch.setattr(cut_steps.CutSteps, "_alike", lambda *_: True)
    steps = cut_steps.prepared(Steps().manager, lambda run: Graph(run).replay)
    gc.collect()
    assert steps is not None
    assert made and all(tensor() is not None for tensor in made)


def test_a_step_that_cuts_nothing_goes_the_other_way() -> None:
    plain, spared, captured = pair()
    for _ in range(2):
        whole = ([DRAFTS] * 4, [1] * 4, 4 * DRAFTS)
        assert spared.step(*whole) == plain.step(*whole)
    assert (spared.own, captured.runs) == (1, 0)


def test_confidences_are_as_they_were_after_the_start() -> None:
    plain, spared, _ = pair()
    assert torch.equal(spared.manager._confidence_probs, plain.manager._confidence_probs)
    assert spared.manager._batch_budget is None


def test_steps_with_more_drafts_than_are_compared_are_vllms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cut_steps, "MOST_SLOTS", 4 * DRAFTS)
    plain, spared, captured = pair()
    assert captured.made == 3, "1, 2 and 4 requests"
    for requests, own in ((4, 0), (5, 1)):
        step = ([DRAFTS] * requests, [1] * requests, 3)
        assert spared.step(*step) == plain.step(*step)
        assert spared.own == own


@pytest.mark.parametrize("drafts", [1, 2, 7])
def test_all_numbers_of_drafts_are_known(drafts: int) -> None:
    manager = Steps().manager
    manager.num_speculative_steps = drafts
    manager._confidence_probs = torch.rand(16, drafts)
    assert cut_steps.prepared(manager, Captured()) is not None


def test_a_graph_that_overlooks_missing_drafts_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    admit = Ranking.admit

    def all_there(self: Any, confidences: Any, drafts: Any, budget: Any, out: Any) -> None:
        admit(self, confidences, torch.where(drafts > 0, DRAFTS, 0), budget, out)

    monkeypatch.setattr(Ranking, "admit", all_there)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        assert cut_steps.prepared(Steps().manager, Captured()) is None
    assert cut_steps.DIFFERS in caplog.text


def test_a_way_of_vllms_that_is_not_known_stays(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    steps.have_vllm_end_with(lambda: steps.manager._cu_num_logits[1].add_(1))
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        hook(steps, Captured())
    steps.own = 0
    steps.step([DRAFTS] * 4, [1] * 4, 5)
    assert steps.own == 1
    assert len(caplog.messages) == 1 and cut_steps.DIFFERS in caplog.text


def test_counts_that_the_host_needs_are_vllms(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    steps.manager._copy_admitted_drafts_to_host = True
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        hook(steps, Captured())
    assert cut_steps.ON_HOST in caplog.text


def test_graphs_that_cannot_be_captured_leave_vllms_way(caplog: pytest.LogCaptureFixture) -> None:
    def none(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("no memory")

    steps = Steps()
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        hook(steps, none)
    steps.step([DRAFTS] * 4, [1] * 4, 5)
    assert steps.own == 1
    assert "no memory" in caplog.text


def test_a_fault_in_a_step_leaves_the_step_and_all_later_ones_to_vllm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Captured):
        broken = False

        def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
            def replay() -> None:
                if self.broken:
                    raise RuntimeError("lost")
                run()

            return replay

    steps, broken = Steps(), Broken()
    hook(steps, broken)
    steps.own, broken.broken = 0, True
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for _ in range(3):
            steps.step([DRAFTS] * 4, [1] * 4, 5)
    assert steps.own == 3
    assert len(caplog.messages) == 1 and "lost" in caplog.text


def test_it_ends_with_the_probe_as_well() -> None:
    _, spared, captured = pair()
    spared.patches.restore()
    spared.step([DRAFTS] * 4, [1] * 4, 5)
    assert (spared.own, captured.runs) == (1, 0)


def test_the_best_are_admitted_and_none_behind_one_that_is_not() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        requests, steps = int(generator.integers(1, 9)), int(generator.integers(1, 8))
        # Few values, so that many are equal; one and zero among them.
        chosen = generator.choice([1.0, 0.5, 0.25, 0.0], (requests, steps))
        confidences = torch.tensor(chosen, dtype=torch.float32)
        drafts = torch.tensor(generator.integers(0, steps + 1, requests), dtype=torch.int32)
        budget = int(generator.integers(0, int(drafts.sum()) + 1))
        out = torch.empty(requests, dtype=torch.int32)
        Ranking(requests, steps, "cpu").admit(confidences, drafts, torch.tensor([budget]), out)
        assert int(out.sum()) == budget
        assert bool((out <= drafts).all())
        survival = np.cumprod(chosen, axis=1)
        there = np.arange(steps) < drafts.numpy()[:, None]
        taken = np.arange(steps) < out.numpy()[:, None]
        best = np.sort(survival[there])[::-1][:budget]
        assert np.array_equal(np.sort(survival[taken])[::-1], best)


@pytest.mark.parametrize("confidence", [float("nan"), -float("nan"), -0.0, -0.5, float("inf")])
def test_as_many_drafts_as_vllm_counts_on_are_admitted_of_any_confidences(
    confidence: float,
) -> None:
    confidences = torch.full((4, 3), 0.5)
    confidences[1], confidences[2, 1] = confidence, confidence
    drafts, out = torch.tensor([3, 2, 3, 0]), torch.empty(4, dtype=torch.int32)
    for budget in range(9):
        Ranking(4, 3, "cpu").admit(confidences, drafts, torch.tensor([budget]), out)
        assert int(out.sum()) == budget
        assert bool((out <= drafts).all())


@pytest.mark.parametrize("faulty", [(), (0,), (1,), (0, 1)])
def test_ranks_cut_alike_or_leave_it_to_vllm(tmp_path: Path, faulty: tuple[int, ...]) -> None:
    hub, ranks = Hub(2), [Steps(), Steps()]
    for rank in faulty:
        ranks[rank].manager._copy_admitted_drafts_to_host = True

    def follow(rank: int) -> None:
        config = ProbeConfig(run_dir=str(tmp_path), verification_costs=True)
        parts, worker = started(config, object(), leads=rank == 0)
        verification = AdaptiveVerification(ranks[rank].manager)
        wire = hub.wire(rank, 60.0)
        follow_verification(parts, worker, verification, ranks[rank].patches, print, lambda: wire)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(follow, range(2)))
    for one in ranks:
        one.manager._copy_admitted_drafts_to_host = False
        one.own = 0
        one.step([DRAFTS] * 4, [1] * 4, 5)
        assert one.own == bool(faulty)
        one.patches.restore()
