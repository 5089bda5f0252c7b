"""Steps that verify all drafts: given out with one copy, on the manager of the installed vLLM."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from test_verification_feed import DRAFTS, made_manager

from vllm_nfp.adapter import versions, whole_steps
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.verification import AdaptiveVerification
from vllm_nfp.adapter.whole_steps import WholeSteps

pytestmark = pytest.mark.skipif(
    not versions.is_since((0, 32)), reason="this vLLM has no adaptive verification"
)


class Steps:
    """A manager between ``prepare_inputs``'s steps; counts vLLM's own givings out."""

    def __init__(self) -> None:
        self.manager = made_manager()
        self.manager.query_start_loc = torch.zeros(17, dtype=torch.int32)
        self.manager._num_non_draft_tokens = torch.zeros(16, dtype=torch.int32)
        self.manager._cu_num_logits = torch.full((17,), -7, dtype=torch.int32)
        self.manager._copy_admitted_drafts_to_host = False
        self.patches = PatchSet()
        self.own = 0
        own = self.manager.reallocate_drafts

        def counted(*args: Any) -> Any:
            self.own += 1
            return own(*args)

        self.manager.reallocate_drafts = counted

    def have_vllm_end_with(self, change: Callable[[], None]) -> None:
        """Change what vLLM's own way leaves behind."""
        own = self.manager.reallocate_drafts

        def changed(*args: Any) -> Any:
            found = own(*args)
            change()
            return found

        self.manager.reallocate_drafts = changed

    def hook(self) -> None:
        AdaptiveVerification(self.manager).spare_giving_out(self.patches, None)

    def step(self, drafts: list[int], others: list[int], verified: int) -> Any:
        names = [f"r{i}" for i in range(len(drafts))]
        self.manager._batch_budget = (
            dict(zip(reversed(names), reversed(drafts), strict=True)),
            dict(zip(names, others, strict=True)), verified,
        )  # fmt: skip
        # As compact_batch and prepare_inputs have it: cut drafts are spread evenly.
        lengths = np.array(others)
        for i in range(verified):
            lengths[i % len(drafts)] += 1
        if verified == sum(drafts):
            lengths = np.array(others) + drafts
        starts = np.full(17, lengths.sum(), dtype=np.int32)
        starts[: len(drafts) + 1] = [0, *np.cumsum(lengths)]
        self.manager.query_start_loc.copy_(torch.from_numpy(starts))
        with torch.inference_mode():
            found = self.manager.reallocate_drafts(names, torch.arange(len(drafts)))
        assert self.manager._batch_budget is None
        ends, query_start_loc, number, *rest = found
        return ends.tolist(), query_start_loc.tolist(), number, rest


WHOLE = [
    ([DRAFTS] * 4, [1] * 4), ([DRAFTS, 2, DRAFTS], [1, 1, 1]), ([3], [1]), ([DRAFTS, 0], [1, 40]),
    ([0, 0], [1, 1]),
]  # fmt: skip


def test_results_are_vllms_and_its_operations_run_for_the_first_alone() -> None:
    plain, spared = Steps(), Steps()
    spared.hook()
    for drafts, others in WHOLE:
        assert spared.step(drafts, others, sum(drafts)) == plain.step(drafts, others, sum(drafts))
    assert (plain.own, spared.own) == (len(WHOLE), 1)


def test_a_step_that_cuts_drafts_is_vllms() -> None:
    plain, spared = Steps(), Steps()
    spared.manager._confidence_probs = plain.manager._confidence_probs
    spared.hook()
    for verified in (16, 5, 0, 16):
        found = spared.step([DRAFTS] * 4, [1] * 4, verified)
        assert found == plain.step([DRAFTS] * 4, [1] * 4, verified)
    assert spared.own == 3, "the last whole step alone was spared"


def test_an_order_of_vllms_own_that_is_not_known_stays(caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    steps.have_vllm_end_with(lambda: steps.manager.query_start_loc[2].add_(1))
    steps.hook()
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for _ in range(3):
            steps.step([DRAFTS] * 4, [1] * 4, 4 * DRAFTS)
    assert steps.own == 3
    assert len(caplog.messages) == 1 and whole_steps.DIFFERS in caplog.text


@pytest.mark.parametrize("whole_steps_before", [0, 1, 2])
def test_a_fault_in_a_step_leaves_the_step_and_all_later_ones_to_vllm(
    whole_steps_before: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, spared = Steps(), Steps()
    spared.hook()
    whole = ([DRAFTS] * 4, [1] * 4, 4 * DRAFTS)
    for _ in range(whole_steps_before):
        spared.step(*whole)
    spared.own = 0
    monkeypatch.setattr(WholeSteps, "_logit_starts", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        for _ in range(3):
            assert spared.step(*whole) == plain.step(*whole)
    assert spared.own == 3
    assert len(caplog.messages) == 1 and "ZeroDivisionError" in caplog.text


def test_it_ends_with_the_probe() -> None:
    steps = Steps()
    steps.hook()
    steps.patches.restore()
    for _ in range(3):
        steps.step([DRAFTS] * 2, [1] * 2, 2 * DRAFTS)
    assert steps.own == 3
