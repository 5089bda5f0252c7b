"""Recommends draft lengths: from step times and acceptance to a schedule, said in full."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vllm_nfp import scrape
from vllm_nfp.draft import sources
from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, constant
from vllm_nfp.draft.curve import LARGEST_BATCH_SIZE, StepCurve
from vllm_nfp.draft.schedule import (
    DEFAULT_SLACK,
    LARGEST_DRAFT_LENGTH,
    Demand,
    DraftCost,
    Schedule,
    ScheduleRow,
    make_schedule,
)
from vllm_nfp.draft.sources import Source, SourceError
from vllm_nfp.draft.speculative_config import speculative_config
from vllm_nfp.profile import Profile, load_profile, to_dataframe
from vllm_nfp.typed_json import parse

if TYPE_CHECKING:
    import pandas as pd

    from vllm_nfp.principle.prediction import Predictions

SCHEMA = 1
VERSION_LIMIT_SECONDS = 5.0
MOST_VERSION_BYTES = 1 << 16


StepTimes: TypeAlias = "Source | Profile | Predictions | Iterable[StepCurve] | str | Path"
"""Whatever step times may be taken from."""


class RecommendError(ValueError):
    """Settings that cannot be used; one sentence names the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Draft lengths, and what they rest on."""

    source: Source
    demand: Demand
    schedule: Schedule

    @property
    def rows(self) -> tuple[ScheduleRow, ...]:
        """Each range of batch sizes at each context."""
        return self.schedule.rows

    def speculative_config(
        self, method: str = "ngram", draft_model: str | None = None
    ) -> dict[str, Any]:
        """What vLLM's ``--speculative-config`` takes, as JSON.

        Raises:
            ValueError: if drafts pay nowhere, or the method's model is missing.
        """
        return speculative_config(self.schedule, method, draft_model)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        demand, source = self.demand, self.source
        return {
            "schema": SCHEMA,
            "source": {
                "kind": source.kind,
                "name": source.name,
                "model": source.model,
                "device": source.device,
                "vllm": source.vllm,
            },
            "acceptance": {
                "per_position": list(demand.acceptance.per_position),
                "beyond": demand.acceptance.beyond,
            },
            "draft_cost": dataclasses.asdict(demand.cost),
            "max_draft_length": demand.max_draft_length,
            "draft_lengths": None if demand.draft_lengths is None else list(demand.draft_lengths),
            "epsilon": demand.epsilon,
            "slack": demand.slack,
            "schedule": [dataclasses.asdict(entry) for entry in self.schedule.ranges],
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            ProfileError: if pandas is not installed.
        """
        return to_dataframe(self.rows, ScheduleRow)


def recommend(
    source: StepTimes,
    acceptance: Acceptance | float | Sequence[float],
    *,
    cost: DraftCost | None = None,
    max_batch_size: int | None = None,
    max_draft_length: int | None = None,
    contexts: Sequence[int] = (),
    epsilon: float = 0.1,
    slack: float = DEFAULT_SLACK,
    draft_lengths: Sequence[int] | None = None,
) -> Recommendation:
    """The draft lengths with the most tokens per second.

    Args:
        source: step times: a profile or its file, a server's URL, predictions, or curves.
        acceptance: of every draft alike, or of the first, second, ... given those before it.
        cost: time to make the drafts; None: as a server under draft control reports it, and
            otherwise free, as with n-gram look-up.
        max_batch_size: last batch size of the table; default: the largest measured.
        max_draft_length: longest draft; default: as far as times and acceptance are known.
        contexts: measured contexts to choose for; default: all.
        epsilon: tolerance at which drafts count as free.
        slack: goodput, as a share, that is given up for a shorter draft.
        draft_lengths: what is chosen from, besides 0; default: every length.

    Raises:
        RecommendError: for a value out of bounds, a context or draft length that was not
            measured, or drafts whose cost the server does not tell.
        AcceptanceError: for acceptance outside 0 to 1.
        SourceError: for a source without step times.
        ProfileError: for a file that is no profile.
        ScrapeError: for a URL that does not answer or has no probe.
    """
    epsilon = _share("epsilon", epsilon, 10.0)
    slack = _share("slack", slack, 0.5)
    if max_draft_length is not None:
        max_draft_length = _count("max_draft_length", max_draft_length, 0, LARGEST_DRAFT_LENGTH)
    if max_batch_size is not None:
        max_batch_size = _count("max_batch_size", max_batch_size, 1, LARGEST_BATCH_SIZE)
    if cost is not None and not isinstance(cost, DraftCost):
        raise RecommendError(f"cost must be a DraftCost, as in DraftCost(0.001), not {cost!r:.80}")
    found = source_of(source)
    accepted = _acceptance_of(acceptance)
    curves = _at_contexts(found, contexts)
    paid = _served_cost(found) if cost is None else cost
    demand = Demand(accepted, paid, max_draft_length, epsilon, slack)
    if draft_lengths is not None:
        demand = replace(demand, draft_lengths=_lengths_of(draft_lengths, curves, demand))
    return Recommendation(found, demand, make_schedule(curves, demand, max_batch_size))


def source_of(source: StepTimes) -> Source:
    """Step times by whatever names them.

    Raises:
        SourceError, ProfileError, ScrapeError: see :func:`recommend`.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, Profile):
        return sources.from_profile(source)
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        end = scrape.deadline()
        samples = scrape.read_samples(scrape.fetch(source), end=end)
        return sources.from_samples(samples, source, server_version(source))
    if isinstance(source, (str, Path)):
        return sources.from_profile(load_profile(source), os.fspath(source))
    from vllm_nfp.principle.prediction import Predictions  # the predictor: most calls do without

    if isinstance(source, Predictions):
        return sources.from_predictions(source)
    curves = tuple(source) if isinstance(source, Iterable) else ()
    if not curves or not all(isinstance(curve, StepCurve) for curve in curves):
        raise SourceError(
            f"{source!r:.80} holds no curve of the whole step: give a profile or its file, a "
            f"server's URL, predictions, or one StepCurve or more"
        )
    return Source("profile", "the curves", "", curves)


def _served_cost(source: Source) -> DraftCost:
    method = sources.served_method(source.drafting)
    cost = sources.served_cost(method, source.drafting)
    if cost is None:
        raise RecommendError(
            f"cost is needed: the server makes its drafts by {method!r:.60} and does not tell what "
            f"a drafted token costs; give it, as in DraftCost(seconds_per_token=0.001)"
        )
    return cost


def server_version(url: str) -> str | None:
    """vLLM's version as the server tells it; None if it does not."""
    base = url.rstrip("/").removesuffix("/metrics")
    try:
        answer = parse(scrape.get(f"{base}/version", VERSION_LIMIT_SECONDS, MOST_VERSION_BYTES))
        version = answer["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return version[:80] if isinstance(version, str) else None


def _acceptance_of(acceptance: Acceptance | float | Iterable[float]) -> Acceptance:
    if isinstance(acceptance, Acceptance):
        return acceptance
    each = [acceptance] if isinstance(acceptance, Real) else acceptance
    try:
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise TypeError
        chances = tuple(float(chance) for chance in each)
    except (TypeError, ValueError, OverflowError):
        raise AcceptanceError(
            f"acceptance {acceptance!r:.80} is no number from 0 to 1, nor one for each draft"
        ) from None
    return constant(*chances) if isinstance(acceptance, Real) else Acceptance(chances)


def _lengths_of(
    lengths: Iterable[int], curves: Sequence[StepCurve], demand: Demand
) -> tuple[int, ...]:
    """Lengths to choose from, ascending; each can be judged at one curve at least."""
    if not isinstance(lengths, Iterable):
        raise RecommendError(f"draft_lengths must be a list, as in [1, 2, 4], not {lengths!r:.80}")
    each = [_count("draft_lengths", length, 0, LARGEST_DRAFT_LENGTH) for length in lengths]
    longest = max(each, default=0)
    if longest == 0:
        raise RecommendError("draft_lengths must hold a length above 0, as in 1, 2, 4")
    measured = max(curve.largest for curve in curves)
    if longest >= measured:
        raise RecommendError(
            f"draft_lengths holds {longest}, which takes {longest + 1} positions, yet step times "
            f"are known up to {measured}: leave it out, or measure more"
        )
    known, most = demand.acceptance.longest, demand.max_draft_length
    if known is not None and longest > known:
        raise RecommendError(
            f"draft_lengths holds {longest}, yet acceptance is known of {known} drafts: leave it "
            f"out, or say that later drafts fare alike (--extend-acceptance)"
        )
    if most is not None and longest > most:
        raise RecommendError(
            f"draft_lengths holds {longest}, above the longest allowed, {most}: leave it out"
        )
    return tuple(sorted(set(each)))


def _at_contexts(source: Source, contexts: Sequence[int]) -> tuple[StepCurve, ...]:
    measured = sorted({curve.context for curve in source.curves})
    for context in contexts:
        if context not in measured:
            raise RecommendError(
                f"context {context} is not among those of {source.name}: "
                f"give {', '.join(map(str, measured))}"
            )
    return tuple(c for c in source.curves if not len(contexts) or c.context in contexts)


def _share(name: str, value: float, high: float) -> float:
    if isinstance(value, Real) and 0.0 <= value <= high:  # which NaN is not
        return float(value)
    raise RecommendError(f"{name} must be a share from 0 to {high:g}, not {value!r:.80}")


def _count(name: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, Integral):
        raise RecommendError(f"{name} must be a whole number, as in 8, not {value!r:.80}")
    if not low <= value <= high:
        raise RecommendError(f"{name} must lie from {low} to {high}, not {value!s:.80}")
    return int(value)
