"""Prometheus' metric families, made of results; each file has one group of them.

Metric names and labels are a contract with users' dashboards (see README.md). Labels have bounded
values: modules, states and outcomes are fixed sets; batch sizes, contexts, epsilons and positions
come from the settings, which bound their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import Metric

from vllm_nfp.metrics.families.boundaries import boundaries
from vllm_nfp.metrics.families.curves import CurvesOf, curves, layers, step_curves, step_ratios
from vllm_nfp.metrics.families.experts import experts
from vllm_nfp.metrics.families.gain import RunningOf, gains
from vllm_nfp.metrics.families.overhead import costs, probing
from vllm_nfp.metrics.families.predictions import predictions
from vllm_nfp.metrics.families.recommendation import (
    DemandOf,
    live_curves,
    live_ratios,
    recommended,
)
from vllm_nfp.metrics.families.state import ages, servers, states, surface
from vllm_nfp.metrics.families.steps import live, steps
from vllm_nfp.metrics.families.verification import verification
from vllm_nfp.results.snapshot import Snapshot


def families_of(
    snapshots: Iterable[Snapshot],
    demand_of: DemandOf = lambda _: None,
    running_of: RunningOf = lambda _: None,
) -> Iterator[Metric]:
    """The metric families for the given engines.

    Args:
        demand_of: acceptance and cost of the drafts of an engine; where it is None no length is
            recommended.
        running_of: the draft length that an engine runs.
    """
    engines = list(snapshots)
    measured = step_curves(engines)
    at_live = live_curves(engines)
    yield from of_files(engines, measured, at_live)
    yield from ages(engines)
    lengths = list(recommended(engines, measured, at_live, demand_of))
    yield from lengths
    yield from gains(engines, at_live, lengths, demand_of, running_of)


def of_files(
    engines: list[Snapshot],
    measured: CurvesOf,
    at_live: CurvesOf,
    lost: Iterable[Snapshot] = (),
) -> Iterator[Metric]:
    """Families that the hand-over files alone decide.

    Args:
        measured: the whole step's curves of the engines.
        at_live: the same at the context of the last step.
        lost: engines of which the state alone is known.
    """
    yield from boundaries(engines)
    yield from predictions(engines)
    yield from curves(engines)
    yield from step_ratios(engines, measured)
    yield from live_ratios(engines, at_live)
    yield from layers(engines)
    yield from probing(engines)
    yield from states([*engines, *lost])
    yield from servers(engines)
    yield from surface(engines)
    yield from costs(engines)
    yield from steps(engines)
    yield from live(engines)
    yield from experts(engines)
    yield from verification(engines)
