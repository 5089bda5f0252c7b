"""How many tokens to draft where vLLM's adaptive verification chooses how many are verified.

Such a server drafts all of ``num_speculative_tokens`` at every step, and each draft takes its time,
verified or not. With D drafts at each step of which the best V are verified, a step gains
max over V of E(V) t(1) / (t(V + 1) + t_draft(D)). One D serves all batch sizes, as vLLM has one.
docs/adaptive-verification.md says how well this rule does on recorded steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.sharing import shortest_good
from vllm_nfp.types import Basis

HOST_MS = 0.8, 2.0
"""What adaptive verification takes of the host's time a step, beyond a fixed draft length: least
with measured costs where no draft is cut, most with vLLM's own costs (H200, vLLM 0.33, at even
speed, 2026-11-29; benchmarks/results/2026-11-29-h200-cut-steps, host-speed.md of both runs)."""


@dataclass(frozen=True, slots=True)
class Reached:
    """Goodput over that of the best fixed draft length, over batch sizes and contexts."""

    mean: float
    least: float


@dataclass(frozen=True, slots=True)
class AdaptiveDrafts:
    """The drafts of each step of a server that verifies adaptively."""

    draft_length: int
    """D, 1 or more."""
    reached: Reached
    bases: tuple[Basis, ...]
    """What the times of these steps rest on, each once, the strongest first."""
    draft_seconds: tuple[float, float]
    """What the last of the D drafts takes, at the batch sizes where it is least and most."""
    running: int | None = None
    """Drafts of each step of the server that runs; None: not known."""
    running_reached: Reached | None = None
    """None: not known of so many drafts."""
    keeps: bool = False
    """What runs is within the slack of the best."""


def adaptive_drafts(curves: Sequence[StepCurve], demand: Demand) -> AdaptiveDrafts | None:
    """The shortest D whose mean over these curves is within the slack of the best.

    None if not even one draft is known.

    Args:
        curves: one for each batch size and context; all weigh the same.
        demand: its bounds on lengths are those of D. Any number of them may be verified.
    """
    free = replace(demand, draft_lengths=None, max_draft_length=None)
    known = {length for curve in curves for length in demand.lengths(curve) if length}
    if not known:
        return None
    running = demand.running if demand.running and demand.knows(demand.running) else None
    tokens = _tokens(curves, free)
    cells = [_Cell(curve, free, tokens) for curve in curves]
    shares = {
        drafted: [cell.share(drafted) for cell in cells]
        for drafted in known | ({running} if running else set())
    }
    chosen = shortest_good({drafted: fmean(shares[drafted]) for drafted in known}, demand.slack)
    reached, now = _reached(shares[chosen]), None if running is None else _reached(shares[running])
    seconds = [_last_draft_seconds(curve, demand, chosen) for curve in curves]
    bases = {cell.curve.basis(cell.best_part(chosen) + 1) for cell in cells}
    return AdaptiveDrafts(
        chosen,
        reached,
        tuple(basis for basis in Basis if basis in bases),
        (min(seconds), max(seconds)),
        demand.running,
        now,
        now is not None and now.mean >= (1.0 - demand.slack) * reached.mean,
    )


def adaptive_sentence(found: AdaptiveDrafts) -> str:
    """What to draft, what that reaches, and what it rests on."""
    now, than = found.running_reached, ""
    tokens = "1 token" if found.draft_length == 1 else f"{found.draft_length} tokens"
    advice, reached = f"draft {tokens} at each step", found.reached
    if now is not None and found.keeps:
        advice, reached = f"keep the {found.running} drafts of each step", now
    elif now is not None:
        than = f", and with the {found.running} that you run {_percent(now)}"
    return (
        f"With adaptive verification {advice} (num_speculative_tokens): verifying the best part of "
        f"them reaches {_percent(reached)} of the best fixed K at each batch size{than} "
        f"({' and '.join(found.bases)} step times; {_cost(found.draft_seconds)}); "
        f"it takes the host {HOST_MS[0]:g} to {HOST_MS[1]:g} ms more a step, which is not counted "
        "and shows where the GPU waits for the host, as with few requests"
    )


def _percent(reached: Reached) -> str:
    return f"{100 * reached.mean:.0f} % on average and {100 * reached.least:.0f} % at least"


def _cost(seconds: tuple[float, float]) -> str:
    low, high = (f"{1e3 * end:.2g}" for end in seconds)
    if not seconds[1]:
        return "a further draft takes no time"
    return f"a further draft takes {low if low == high else f'{low} to {high}'} ms"


def _reached(shares: Sequence[float]) -> Reached:
    return Reached(fmean(shares), min(shares))


def _tokens(curves: Sequence[StepCurve], demand: Demand) -> Sequence[float]:
    """E(V) of each number of drafts that may be verified, from 0 on."""
    most = max(demand.longest(curve) for curve in curves)
    return [demand.acceptance.expected_tokens(verified) for verified in range(most + 1)]


class _Cell:
    """Steps at one batch size and context, which draft D tokens and verify the first V.

    No more are verified than are known of the curve.
    """

    def __init__(self, curve: StepCurve, demand: Demand, tokens: Sequence[float]) -> None:
        self.curve, self._demand = curve, demand
        works = [demand.work_ratio(curve, part) for part in range(demand.longest(curve) + 1)]
        self._parts = [*zip(tokens, works, strict=False)]
        self._best = max(self._goodput(k, self._drafting(k)) for k in range(len(works)))

    def best_part(self, drafted: int) -> int:
        """V of D."""
        drafting = self._drafting(drafted)
        parts = range(min(drafted + 1, len(self._parts)))
        return max(parts, key=lambda part: self._goodput(part, drafting))

    def share(self, drafted: int) -> float:
        """Goodput over that of the best fixed length."""
        best = self._goodput(self.best_part(drafted), self._drafting(drafted))
        return best / self._best

    def _goodput(self, part: int, drafting: float) -> float:
        tokens, work = self._parts[part]
        return tokens / (work + drafting)

    def _drafting(self, drafted: int) -> float:
        return self._demand.cost.ratio(drafted, self.curve)


def _last_draft_seconds(curve: StepCurve, demand: Demand, drafted: int) -> float:
    """What D drafts take more than D - 1; of one draft all that it takes."""
    before = demand.cost.ratio(drafted - 1, curve) if drafted > 1 else 0.0
    return max(0.0, demand.cost.ratio(drafted, curve) - before) * curve.seconds_at_one
