"""Acceptance and drafting from the /metrics of a running server."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, from_counters
from vllm_nfp.draft.drafting import Drafting
from vllm_nfp.draft.live.decision import Reason
from vllm_nfp.draft.live.steps import cell_of
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.results.scrape import count

if TYPE_CHECKING:
    from vllm_nfp.results.scrape import Samples

DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED_PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
DRAFT_SECONDS = "vllm_nfp_draft_token_seconds"
DRAFT_CONTROL = "vllm_nfp_draft_control_info"
LIVE_DRAFT_LENGTH = "vllm_nfp_live_draft_length"
CONTROL_LENGTH = "vllm_nfp_draft_control_length"
SCHEDULED = "vllm_nfp_verification_scheduled_drafts_total"
"""Only a server with adaptive verification has it."""
ADMITTED = "vllm_nfp_verification_admitted_drafts_total"
COUNTERS = (DRAFTS, DRAFTED, ACCEPTED_PER_POSITION)
"""vLLM's own metrics that :func:`live_acceptance` reads."""
MOST_PLACES = 512
"""Positions in a draft that are read."""


class NoDraftsError(SourceError):
    """The server does not speculate, so that nothing of acceptance is counted."""


@dataclass(frozen=True, slots=True)
class LiveAcceptance:
    """Acceptance as a server has counted it since it started."""

    acceptance: Acceptance
    drafts: float
    mean_draft_length: float
    """Tokens in a draft."""

    @property
    def caution(self) -> str | None:
        """What is less certain of later positions; None if all drafts were of full length."""
        places = len(self.acceptance.per_position)
        if self.mean_draft_length > 0.99 * places:
            return None
        return (
            f"the server's drafts had {self.mean_draft_length:.2f} tokens on average, not "
            f"{places}: acceptance at later positions is estimated, because vLLM does not count "
            f"drafts by length"
        )


def live_acceptance(samples: Samples, engine: str | None = None) -> LiveAcceptance:
    """Acceptance by position in the draft, from vLLM's counters.

    Args:
        engine: one engine's; None: all engines together.

    Raises:
        SourceError: if the server does not speculate, has drafted nothing, or its counters
            contradict each other.
    """

    if not _of_engine(samples, DRAFTS, engine):
        raise NoDraftsError(
            "the server counts no drafts (it has no --speculative-config): give --acceptance"
        )
    places: dict[int, float] = {}
    try:
        for labels, value in _of_engine(samples, ACCEPTED_PER_POSITION, engine):
            place = count(labels["position"])
            places[place] = places.get(place, 0.0) + value
    except (KeyError, ValueError) as error:
        raise SourceError(f"the server's counters by position cannot be read: {error}") from None
    if sorted(places) != list(range(len(places))) or len(places) > MOST_PLACES:
        raise SourceError("the server's counters by position have gaps: give --acceptance")
    drafts = math.fsum(value for _, value in _of_engine(samples, DRAFTS, engine))
    if drafts == 0:
        raise NoDraftsError(
            "the server has counted no drafts yet: send it requests, or give --acceptance"
        )
    drafted = math.fsum(value for _, value in _of_engine(samples, DRAFTED, engine))
    try:
        acceptance = from_counters(drafts, [places[place] for place in sorted(places)], drafted)
    except AcceptanceError as error:
        raise SourceError(str(error)) from None
    return LiveAcceptance(acceptance, drafts, drafted / drafts)


def running_length(samples: Samples, engine: str | None = None) -> int | None:
    """The draft length that a server runs now; 0 without speculation, None if it is not known.

    Under draft control it is that of the last step; of several engines the longest.
    """
    controlled = [value for _, value in _of_engine(samples, LIVE_DRAFT_LENGTH, engine)]
    if controlled:
        return int(max(controlled))
    if not _of_engine(samples, DRAFTS, engine):
        return 0
    places = {of.get("position") for of, _ in _of_engine(samples, ACCEPTED_PER_POSITION, engine)}
    return len(places) or None


def verifies_adaptively(samples: Samples) -> bool:
    """Whether an engine of the server chooses at each step how many drafts are verified."""
    return bool(samples.get(SCHEDULED))


def settled_length(
    samples: Samples, engine: str | None, batch_size: int, context: int
) -> int | None:
    """The length that draft control has measured to be the best where traffic is; None: it has not.

    Real steps of the server decided it, so that it goes before any forecast.
    """
    cell = cell_of(batch_size, context)
    for labels, value in _of_engine(samples, CONTROL_LENGTH, engine):
        here = count(labels["batch_size"]), count(labels["context"])
        if here == cell and labels.get("reason") in (Reason.FASTER, Reason.KEPT):
            return int(value)
    return None


def live_drafting(samples: Samples, engine: str | None = None) -> Drafting:
    """How the server drafts, as its draft control reports it.

    Args:
        engine: one engine's; None: all engines together.
    """
    told = _of_engine(samples, DRAFT_SECONDS, engine)
    seconds = [value for _, value in told]
    methods = {labels.get("method") for labels, _ in _of_engine(samples, DRAFT_CONTROL, engine)}
    positive = [value for value in seconds if value > 0.0]
    return Drafting(
        frozenset(method for method in methods if method),
        statistics.median(positive or seconds) if seconds else None,
        _by_batch(told),
    )


def _by_batch(told: Iterable[tuple[Mapping[str, str], float]]) -> tuple[tuple[int, float], ...]:
    """(batch size, seconds of a drafted token), ascending, the median over engines.

    A cost of 0 is left out, so that the nearest batch size with another speaks for it.
    """
    found: dict[int, list[float]] = {}
    for labels, value in told:
        size = labels.get("batch_size", "")
        if size.isascii() and size.isdigit() and int(size) and 0.0 < value < math.inf:
            found.setdefault(int(size), []).append(value)
    return tuple((size, statistics.median(values)) for size, values in sorted(found.items()))


def _of_engine(
    samples: Samples, name: str, engine: str | None
) -> list[tuple[Mapping[str, str], float]]:
    """The samples of a metric; of all engines unless one is named."""
    found = samples.get(name, ())
    return [(of, value) for of, value in found if engine is None or of.get("engine") == engine]
