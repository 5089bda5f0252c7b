"""The controller's state as it goes to /metrics, put together a little at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vllm_nfp.draft.live.controller import Controller
from vllm_nfp.results.control import (
    MOST_CELLS,
    ControlSnapshot,
    ControlState,
    DraftChoice,
    DraftStepLatency,
)

CELLS_AT_A_TIME = 8
"""Cells between two pauses: some 0.1 ms."""


def pieces_of_report(
    controller: Controller, identity: ControlSnapshot
) -> Iterator[ControlSnapshot | None]:
    """A report, after a None for each pause in which a step may run.

    Args:
        identity: what the report says of the engine.
    """
    rows: list[DraftChoice] = []
    times: list[DraftStepLatency] = []
    for number, key in enumerate(controller.latest_cells(MOST_CELLS), 1):
        controller.learn(key)  # a cell without traffic would keep what older curves said
        row = controller.row(key)
        if row is not None:
            rows.append(
                DraftChoice(
                    row.batch_size,
                    row.context,
                    row.draft_length,
                    row.static_length,
                    str(row.reason),
                    row.gain,
                )
            )
            times += (
                DraftStepLatency(*key, length, samples, median)
                for length, samples, median in controller.times(key)
            )
        if number % CELLS_AT_A_TIME == 0:
            yield None
    acceptance = controller.acceptance
    yield replace(
        identity,
        state=ControlState.LEARNING if acceptance is None else ControlState.DECIDING,
        lengths=controller.lengths,
        rows=tuple(rows),
        times=tuple(times),
        acceptance=() if acceptance is None else acceptance.per_position,
        decisions={str(reason): count for reason, count in controller.decisions.items()},
        draft_seconds={str(b): s for b, s in controller.draft_seconds.items()},
        steps=controller.steps,
        trial_steps=controller.trial_steps,
    )
