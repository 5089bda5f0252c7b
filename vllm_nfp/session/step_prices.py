"""What recent real steps took, beside what two sets of costs say of them."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_nfp.adapter.verification import Tables
from vllm_nfp.draft.cost_tables import PricedCosts
from vllm_nfp.results.real_steps import ENOUGH
from vllm_nfp.results.verification import StepSeconds
from vllm_nfp.timing import RealSteps
from vllm_nfp.types import Shape


def launch_seconds(kinds: Iterable[RealSteps], own: Tables | None, largest_graph: int) -> float:
    """What the host needs for a real step beyond the graphs, without drafting; 0: not known.

    A step ends no earlier than its last launch, at any context and number of tokens. Where the
    device waits for launches, the host's time is known: the wait is counted from the step's begin.
    The least of all kinds of steps counts.

    Args:
        own: vLLM's tables.
        largest_graph: tokens of the largest CUDA graph.
    """
    if own is None or not largest_graph:
        return 0.0
    found = (
        min(of.wait_seconds, of.median_seconds)
        - 1e-3 * float(own[0][min(of.shape.batch_size, len(own[0]) - 1)])
        for of in kinds
        if of.timed >= ENOUGH
        and of.wait_seconds > 0.0
        and of.shape.batch_size * of.mean_positions > largest_graph
    )
    return max(0.0, min(found, default=0.0))


class StepPrices:
    """Means over the decode steps since the update before, weighted by their number."""

    def __init__(self) -> None:
        self._counted: dict[Shape, int] = {}
        self.seconds = StepSeconds()

    def update(
        self,
        kinds: Iterable[RealSteps],
        own: Tables | None,
        measured: PricedCosts | None,
        positions: int,
    ) -> None:
        """Take in the steps since the last time; without any the means stay.

        Args:
            own: vLLM's tables.
            measured: the surface's.
            positions: most positions per sequence of a step.
        """
        if own is None:
            return
        total, real, by_own = 0, 0.0, 0.0
        of_both, by_measured = 0, 0.0
        for of in kinds:
            count = of.count - self._counted.get(of.kind, 0)
            if count <= 0 or of.shape.positions > positions:
                continue
            self._counted[of.kind] = of.count
            requests = min(of.shape.batch_size, len(own[0]) - 1)
            tokens = min(round(requests * of.mean_positions), len(own[1]) - 1)
            drafting = float(own[0][requests])
            total += count
            real += count * of.median_seconds
            by_own += count * (drafting + float(own[1][tokens]))
            work = None if measured is None else measured.of_work(requests, tokens - requests)
            if work is not None:
                of_both += count
                by_measured += count * (drafting + work)
        if total:
            self.seconds = StepSeconds(
                real / total,
                1e-3 * by_own / total,
                1e-3 * by_measured / of_both if of_both == total else None,
            )
