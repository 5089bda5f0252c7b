"""``recommend``: from step times and acceptance to draft lengths and advice on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral, Real

from vllm_nfp.crossing import MOST_EPSILON
from vllm_nfp.draft import advice, cautions
from vllm_nfp.draft.adaptive import AdaptiveDrafts, adaptive_drafts, adaptive_sentence
from vllm_nfp.draft.curve import LARGEST_BATCH_SIZE, StepCurve
from vllm_nfp.draft.demand import (
    DEFAULT_SLACK,
    LARGEST_DRAFT_COST,
    LARGEST_DRAFT_LENGTH,
    Demand,
    DraftCost,
)
from vllm_nfp.draft.drafting import Drafting, cost_of
from vllm_nfp.draft.inputs import GivenAcceptance, StepTimes, read_inputs
from vllm_nfp.draft.live_rows import live_rows, longer_rows
from vllm_nfp.draft.methods import DRAFT_METHODS, LOOKUPS, PARALLEL, known_method
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.schedule import make_schedule
from vllm_nfp.draft.sources import Source
from vllm_nfp.draft.verdict import verdict
from vllm_nfp.text import hint


class RecommendError(ValueError):
    """Settings that cannot be used; one sentence names the value and what is allowed."""


def recommend(
    source: StepTimes,
    acceptance: GivenAcceptance | None = None,
    *,
    acceptance_from: str | None = None,
    extend_acceptance: bool = False,
    draft_method: str | None = None,
    draft_model: str | None = None,
    parallel_drafting: bool = False,
    draft_cost: float | None = None,
    draft_share: float | None = None,
    cost: DraftCost | None = None,
    max_batch_size: int | None = None,
    max_draft_length: int | None = None,
    contexts: Sequence[int] = (),
    epsilon: float = 0.1,
    slack: float = DEFAULT_SLACK,
    draft_lengths: Sequence[int] | None = None,
    running: int | None = None,
    vllm: str | None = None,
    adaptive_verification: bool = False,
) -> Recommendation:
    """The draft lengths with the most tokens per second.

    Args:
        source: step times: a profile or its file, a server's URL, predictions, or curves.
        acceptance: probability that a drafted token is accepted; or of the first, second, ...
            given those before it; None: as counted by the server.
        acceptance_from: URL of the server that has counted it; None: the one of the step times.
        extend_acceptance: reuse the last value for later drafted tokens.
        draft_method: in vLLM's words; None: as the server drafts; otherwise ngram.
        draft_model: directory or name of the draft model's weights, for ``speculative_config``.
        parallel_drafting: the drafter makes all drafts in one pass (P-EAGLE, PARD), as vLLM's
            setting of this name says.
        draft_cost: seconds of a draft step; of a step's whole lookup or pass with a method that
            drafts once a step.
        draft_share: the same as a fraction of a step without drafts, t(1).
        cost: the same in full, in place of the two; None of them: as the server's draft control
            has measured it, and free for an n-gram method.
        max_batch_size: last batch size of the table; default: the largest measured, and of a
            profile that many that its server's ``--max-num-seqs`` allows.
        max_draft_length: longest draft; default: as far as times and acceptance are known.
        contexts: measured contexts to choose for; default: all.
        epsilon: tolerance: extra step time at which drafts still count as free, as a fraction.
        slack: fraction of the best tokens per second that is given up for a shorter draft.
        draft_lengths: lengths to choose from, besides 0; default: every length.
        running: draft length that runs now, which gains are compared with too; None: as the
            server of the step times says.
        vllm: version of vLLM that will serve the table, where the source does not name its own.
        adaptive_verification: say how many tokens to draft with vLLM's adaptive verification too;
            of a server that verifies adaptively it is said in any case.

    Raises:
        RecommendError: for a value out of bounds, a context or draft length that was not
            measured, or drafts of unknown cost.
        AcceptanceError: for acceptance outside 0 to 1, or none.
        SourceError: for a source without step times, or a server without counted drafts.
        ProfileError: for a file that is no profile.
        ScrapeError: for a URL that does not answer with metrics.
    """
    epsilon = _fraction("epsilon", epsilon, MOST_EPSILON)
    slack = _fraction("slack", slack, 0.5)
    max_draft_length = _count_if_any("max_draft_length", max_draft_length, 1, LARGEST_DRAFT_LENGTH)
    max_batch_size = _count_if_any("max_batch_size", max_batch_size, 1, LARGEST_BATCH_SIZE)
    running = _count_if_any("running", running, 0, LARGEST_DRAFT_LENGTH)
    if cost is not None and not isinstance(cost, DraftCost):
        raise RecommendError(f"cost must be a DraftCost, as in DraftCost(0.001), not {cost!r:.80}")
    draft_method = None if draft_method is None else _known_method(draft_method)
    given = read_inputs(source, acceptance, acceptance_from, draft_method, draft_model)
    method = _method(draft_method, given.drafting, draft_model)
    _check_parallel(method, parallel_drafting)
    _check_adaptive(method, adaptive_verification)
    demand = Demand(
        given.acceptance.extended() if extend_acceptance else given.acceptance,
        _cost(method, given.drafting, draft_cost, draft_share, parallel_drafting)
        if cost is None
        else cost,
        max_draft_length,
        epsilon,
        slack,
        running=given.running if running is None else running,
        host_seconds=given.host_seconds,
        drafted_fraction=given.drafted_fraction,
    )
    curves = _at_contexts(given.source, contexts)
    if draft_lengths is not None:
        demand = replace(demand, draft_lengths=_lengths_of(draft_lengths, curves, demand))
    if max_batch_size is None:
        max_batch_size = given.source.max_batch_size
    schedule = make_schedule(curves, demand, max_batch_size, given.source.whole)
    served_by = given.source.vllm or vllm
    if given.source.cut_layers is not None:
        schedule = schedule.without_rates()
    live = live_rows(given.source, demand, schedule)
    wanted = adaptive_verification or given.adaptive
    adaptive = _adaptive(curves, demand, method, max_batch_size) if wanted else None
    return Recommendation(
        source=given.source,
        demand=demand,
        schedule=schedule,
        method=method,
        draft_model=draft_model,
        parallel_drafting=parallel_drafting,
        vllm=served_by,
        assumptions=advice.assumptions(given.source, demand, method, parallel_drafting),
        warnings=(
            *given.warnings,
            *_unknown_drafter(method, given.adaptive),
            *cautions.unexplained(given.real_steps, curves, demand),
            *advice.warnings(given.source, demand, schedule, method, served_by, parallel_drafting),
        ),
        live=live,
        verdict=(
            *verdict(
                given.source,
                demand,
                schedule,
                live,
                longer_rows(given.source, demand, schedule, live),
            ),
            *(() if adaptive is None else (adaptive_sentence(adaptive),)),
        ),
        adaptive=adaptive,
    )


def _unknown_drafter(method: str, adaptive: bool) -> tuple[str, ...]:
    """That nothing tells what drafts an adaptive server makes, whose drafter always is a model."""
    if not adaptive or method not in LOOKUPS:
        return ()
    return (
        f"the server verifies adaptively, which no drafts by {method} are: give --draft-method, "
        f"and --draft-cost, to learn which num_speculative_tokens pays",
    )


def _check_adaptive(method: str, asked: bool) -> None:
    if asked and method in LOOKUPS:
        raise RecommendError(
            f"adaptive_verification needs drafts of a model, which {method} does without: give the "
            f"--draft-method that you serve, such as eagle3"
        )


def _adaptive(
    curves: Sequence[StepCurve], demand: Demand, method: str, last: int | None
) -> AdaptiveDrafts | None:
    """The drafts of each step with adaptive verification, over the batch sizes of the table."""
    inside = [curve for curve in curves if last is None or curve.batch_size <= last]
    return None if method in LOOKUPS else adaptive_drafts(inside or curves, demand)


def _known_method(name: str) -> str:
    found = known_method(name)
    if found is None:
        raise RecommendError(
            f"draft_method must be one of {', '.join(DRAFT_METHODS)}, not {name!r:.80}"
            f"{hint(name, DRAFT_METHODS)}"
        )
    return found


def _method(given: str | None, drafting: Drafting, draft_model: str | None) -> str:
    """How drafts are to be made."""
    method = given or drafting.method
    if method in LOOKUPS and draft_model is not None:
        raise RecommendError(
            f"draft_model is given, but {method} looks drafts up without a model: leave it out, or "
            f"give the --draft-method that it is for, such as eagle3"
        )
    return method


def _check_parallel(method: str, parallel: bool) -> None:
    if parallel and method not in PARALLEL:
        raise RecommendError(
            f"parallel_drafting is for {', '.join(sorted(PARALLEL))}, not {method}: leave it out"
        )


def _cost(
    method: str,
    drafting: Drafting,
    seconds: float | None,
    share: float | None,
    parallel: bool,
) -> DraftCost:
    """What drafts cost: as given, or as the server has measured it."""
    if seconds is not None and share is not None:
        raise RecommendError("draft_cost and --draft-share are both given: give one")
    if seconds is None and share is None:
        # What was predicted or measured of a drafter that runs for each token is not its cost.
        measured = None if parallel else drafting.cost(method)
        if measured is None:
            raise RecommendError(drafting.why_unknown(method))
        return measured
    if method not in DRAFT_METHODS:
        raise RecommendError(drafting.why_unknown(method))
    try:
        return cost_of(method, seconds, share, parallel)
    except ValueError:
        name, value = ("draft_share", share) if seconds is None else ("draft_cost", seconds)
        most = f"at most {LARGEST_DRAFT_COST:g}" if (value or 0) > 0 else "0 or more"
        raise RecommendError(f"{name} must be {most}, not {value:g}") from None


def _lengths_of(
    lengths: Iterable[int], curves: Sequence[StepCurve], demand: Demand
) -> tuple[int, ...]:
    """Lengths to choose from, ascending; at least one curve reaches each."""
    if not isinstance(lengths, Iterable):
        raise RecommendError(f"draft_lengths must be a list, as in [1, 2, 4], not {lengths!r:.80}")
    each = [_count("draft_lengths", length, 0, LARGEST_DRAFT_LENGTH) for length in lengths]
    longest = max(each, default=0)
    if longest == 0:
        raise RecommendError("draft_lengths must hold a length above 0, as in 1, 2, 4")
    measured = max(curve.largest for curve in curves)
    if longest >= measured:
        raise RecommendError(
            f"draft_lengths holds {longest}, which takes {longest + 1} positions, but step times "
            f"are known up to {measured}: leave it out, or measure more positions"
        )
    known, most = demand.acceptance.longest, demand.max_draft_length
    if known is not None and longest > known:
        raise RecommendError(
            f"draft_lengths holds {longest}, but acceptance is known of {known} drafted tokens: "
            f"leave it out, or reuse the last value for later ones (--extend-acceptance)"
        )
    if most is not None and longest > most:
        raise RecommendError(
            f"draft_lengths holds {longest}, above max_draft_length, {most}: leave it out"
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


def _fraction(name: str, value: float, high: float) -> float:
    if isinstance(value, Real) and 0.0 <= value <= high:  # which NaN is not
        return float(value)
    raise RecommendError(f"{name} must be between 0 and {high:g} (0.1 = 10 %), not {value!r:.80}")


def _count_if_any(name: str, value: int | None, low: int, high: int) -> int | None:
    return None if value is None else _count(name, value, low, high)


def _count(name: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, Integral):
        raise RecommendError(f"{name} must be a whole number, as in 8, not {value!r:.80}")
    if not low <= value <= high:
        raise RecommendError(f"{name} must be between {low} and {high}, not {value!s:.80}")
    return int(value)
