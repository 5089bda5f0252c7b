"""Whatever step times and acceptance may be taken from, read into what draft lengths need."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from vllm_nfp.draft import server, sources
from vllm_nfp.draft.acceptance import (
    Acceptance,
    AcceptanceError,
    NoAcceptanceError,
    constant,
)
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.drafting import UNKNOWN, Drafting
from vllm_nfp.draft.methods import LOOKUPS
from vllm_nfp.draft.server_drafts import (
    ADMITTED,
    SCHEDULED,
    live_acceptance,
    live_drafting,
    running_length,
    verifies_adaptively,
)
from vllm_nfp.draft.server_steps import RealStep, drafted_fraction, host_seconds, real_steps
from vllm_nfp.draft.sources import Source, SourceError
from vllm_nfp.results.profile import Profile, load_profile

if TYPE_CHECKING:
    from vllm_nfp.principle.predictions import Predictions
    from vllm_nfp.results.scrape import Samples

StepTimes: TypeAlias = "Source | Profile | Predictions | Iterable[StepCurve] | str | Path"
"""Whatever step times may be taken from."""
GivenAcceptance: TypeAlias = "Acceptance | float | Sequence[float]"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What draft lengths are chosen from."""

    source: Source
    acceptance: Acceptance
    drafting: Drafting
    """How the server of the acceptance, or else of the step times, makes its drafts."""
    warnings: tuple[str, ...] = ()
    """What to know of the source and of the acceptance, one sentence each."""
    running: int | None = None
    """Draft length that the server runs; None: not known."""
    host_seconds: float = 0.0
    """What the server's real steps take beyond their work on the device; 0: not known."""
    drafted_fraction: float | None = None
    """Fraction of the server's steps that had a draft; None: not known."""
    real_steps: tuple[RealStep, ...] = ()
    """Kinds of steps that the server has run."""
    adaptive: bool = False
    """A server verifies adaptively: that of the step times, or of the acceptance."""


def read_inputs(
    times: StepTimes,
    acceptance: GivenAcceptance | None,
    acceptance_from: str | None,
    draft_method: str | None,
    draft_model: str | None = None,
) -> Inputs:
    """Step times, acceptance and how drafts are made; each server is read once.

    Args:
        acceptance: None: as counted by the server of ``acceptance_from``, or of the step times.
        acceptance_from: a server's URL.
        draft_method: how drafts are to be made; None: as the server makes them.
        draft_model: directory of the draft model's config.json, to predict its cost.

    Raises:
        AcceptanceError, SourceError, ProfileError, ScrapeError: see
            :func:`vllm_nfp.draft.recommend.recommend`.
    """
    warnings: list[str] = []
    metrics: list[Samples] = []
    if is_url(times):
        samples = server.read_metrics(times)
        source = server.step_times(times, samples)
        metrics.append(samples)
        warnings += _several_engines(times, samples) + _adaptive(times, samples)
    else:
        source = source_of(times)
    if acceptance_from is not None:
        metrics.insert(0, server.read_metrics(acceptance_from))
        warnings += server.differences(source, metrics[0])
    found = next((one for one in map(live_drafting, metrics) if one != UNKNOWN), source.drafting)
    if source.kind == "prediction":
        from vllm_nfp.draft.predictions import hints, predicted_drafting

        warnings += hints(source, draft_method)
        found = predicted_drafting(source, found, draft_model)
    if acceptance is not None:
        given = acceptance_of(acceptance)
    else:
        given, more = _counted(metrics, draft_method)
        warnings += more
    adaptive = any(map(verifies_adaptively, metrics))
    inputs = Inputs(source, given, found, tuple(warnings), adaptive=adaptive)
    return _with_real_steps(inputs, metrics[-1]) if is_url(times) else inputs


def _with_real_steps(inputs: Inputs, samples: Samples) -> Inputs:
    """With what the server of the step times has counted of its own steps."""
    return replace(
        inputs,
        running=running_length(samples),
        host_seconds=host_seconds(samples),
        drafted_fraction=drafted_fraction(samples),
        real_steps=real_steps(samples),
    )


def _counted(metrics: Sequence[Samples], draft_method: str | None) -> tuple[Acceptance, list[str]]:
    """Acceptance that the first of these servers has counted, and warnings of it."""
    if not metrics:
        raise NoAcceptanceError(
            "acceptance is needed: give a probability such as 0.8, one for each drafted token, or "
            "the URL of a server that speculates"
        )
    counted = live_acceptance(metrics[0])
    warnings = [] if counted.caution is None else [counted.caution]
    warnings += _other_methods(live_drafting(metrics[0]), draft_method)
    return counted.acceptance, warnings


def _several_engines(url: str, samples: Samples) -> list[str]:
    engines = server.engines_of(samples)
    if engines < 2:
        return []
    return [
        f"{url} has {engines} engines: the slowest counts for each step, and vLLM ignores draft "
        f"lengths by batch size under data parallelism"
    ]


def _adaptive(url: str, samples: Samples) -> list[str]:
    """What the running draft length of a server with adaptive verification stands for."""
    scheduled, admitted = (
        sum(value for _, value in samples.get(name, ())) for name in (SCHEDULED, ADMITTED)
    )
    if not scheduled > 0.0:
        return []
    return [
        f"{url} verifies adaptively: each step drafts all of num_speculative_tokens, and "
        f"{admitted / scheduled:.0%} of the drafted tokens were verified, the others count as not "
        f"accepted; gains over the length that runs are gains over a server that verifies all of "
        f"them"
    ]


def _other_methods(drafting: Drafting, method: str | None) -> list[str]:
    """That the acceptance was counted on drafts of another method than the one asked for."""
    if method is None:
        return []
    others = drafting.methods - (LOOKUPS if method in LOOKUPS else {method})
    made = ", ".join(sorted(others))
    return [f"acceptance was counted on drafts by {made!r:.60}, not {method}"] if others else []


def is_url(source: object) -> TypeGuard[str]:
    """Whether the source is a server."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def source_of(times: StepTimes) -> Source:
    """Step times by whatever names them.

    Raises:
        SourceError, ProfileError, ScrapeError: see :func:`vllm_nfp.draft.recommend.recommend`.
    """
    if isinstance(times, Source):
        return times
    if isinstance(times, Profile):
        return sources.from_profile(times)
    if is_url(times):
        return server.step_times(times, server.read_metrics(times))
    if isinstance(times, (str, Path)):
        return sources.from_profile(load_profile(times), os.fspath(times))
    from vllm_nfp.principle.predictions import (
        Predictions,  # it needs numpy, which most calls do not
    )

    if isinstance(times, Predictions):
        from vllm_nfp.draft.predictions import from_predictions

        return from_predictions(times)
    curves = tuple(times) if isinstance(times, Iterable) else ()
    if not curves or not all(isinstance(curve, StepCurve) for curve in curves):
        raise SourceError(
            f"{times!r:.80} holds no curve of the whole step: give a profile or its file, a "
            f"server's URL, predictions, or one StepCurve or more"
        )
    return Source("profile", "the curves", "", curves)


def acceptance_of(given: GivenAcceptance) -> Acceptance:
    """Acceptance by a number or one for each drafted token.

    Raises:
        AcceptanceError: for anything else, or a number outside 0 to 1.
    """
    if isinstance(given, Acceptance):
        return given
    each = [given] if isinstance(given, Real) else given
    try:
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise TypeError
        chances = tuple(float(chance) for chance in each)
    except (TypeError, ValueError, OverflowError):
        raise AcceptanceError(
            f"acceptance {given!r:.80} is no number from 0 to 1, nor one for each drafted token"
        ) from None
    return constant(*chances) if isinstance(given, Real) else Acceptance(chances)
