"""Where step times and acceptance come from: a profile, a running server, or a prediction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vllm_nfp.draft.acceptance import Acceptance, AcceptanceError, from_counters
from vllm_nfp.draft.curve import StepCurve, curve_of_seconds
from vllm_nfp.draft.schedule import FREE, DraftCost
from vllm_nfp.draft.speculative_config import DRAFT_METHODS, LOOK_UPS
from vllm_nfp.give_way import in_pieces
from vllm_nfp.scrape import count

if TYPE_CHECKING:
    from vllm_nfp.metrics.snapshot import BoundaryRow, CurveRow
    from vllm_nfp.principle.prediction import Predictions
    from vllm_nfp.profile import Profile
    from vllm_nfp.scrape import Samples

DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED_PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
DRAFT_SECONDS = "vllm_nfp_draft_token_seconds"
DRAFT_CONTROL = "vllm_nfp_draft_control_info"
STEP_RATIO = "vllm_nfp_step_time_ratio"
COUNTERS = (DRAFTS, DRAFTED, ACCEPTED_PER_POSITION)
"""What :func:`live_acceptance` reads of vLLM's own metrics."""

SAME_STEP = 1.25
"""Two medians of one step on one device differ by less than this factor."""
STEP_OVER_LAUNCH = 1.25
"""A whole step of the host over launching its forward, which is all that a probe sees of it:
scheduling, sampling and drafting come on top. Where the host set the pace, on H100, the engine took
1.2 to 1.8 times as long (benchmarks/results/2026-11-26-h100-draft-lengths)."""
MOST_PLACES = 512
ROWS_AT_A_TIME = 512
"""Rows that are sorted into cells before a pause: some 0.1 ms."""
CURVES_AT_A_TIME = 8
"""Curves that are made before a pause: some 0.1 ms."""
NO_GRAPH = "none"
"""How a step ran of which no part was in a CUDA graph."""

Kind = Literal["profile", "server", "prediction"]


class SourceError(ValueError):
    """Step times or acceptance that cannot be used; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """Step times of one model on one device."""

    kind: Kind
    name: str
    """The file, URL or folder, for messages."""
    model: str
    curves: tuple[StepCurve, ...]
    device: str | None = None
    """None: not known."""
    vllm: str | None = None
    """vLLM's version; None: not known."""
    drafting: LiveDrafting | None = None
    """How the server makes its drafts; None: not known."""


@dataclass(frozen=True, slots=True)
class LiveAcceptance:
    """Acceptance as a server has counted it since its start."""

    acceptance: Acceptance
    drafts: float
    mean_draft_length: float
    """Tokens in a draft."""

    @property
    def caution(self) -> str | None:
        """Why the acceptance of later drafts is understated; None if it is not."""
        places = len(self.acceptance.per_position)
        if self.mean_draft_length > 0.99 * places:
            return None
        return (
            f"the server's drafts had {self.mean_draft_length:.2f} tokens on average and not "
            f"{places}: the acceptance of later ones is understated, since vLLM counts a token "
            f"that was not drafted as not accepted"
        )


@dataclass(frozen=True, slots=True)
class LiveDrafting:
    """How a server makes its drafts, as its controllers of draft lengths tell it."""

    methods: frozenset[str]
    """In vLLM's words; several where its engines differ."""
    token_seconds: float | None
    """Time of one more drafted token, the median over batch sizes; 0: no such time was seen at any;
    None: nothing was learned yet."""


def curves_of_rows(
    rows: Iterable[CurveRow], boundaries: Iterable[BoundaryRow] = ()
) -> tuple[StepCurve, ...]:
    """The whole step's curves among the rows of a profile or snapshot, one for each cell.

    Where a step with one position has a CUDA graph, those without take at least as long as the
    host needs for them, see :func:`_host_seconds`.
    """
    cells: dict[tuple[int, int], dict[int, CurveRow]] = {}
    for row in in_pieces(rows, ROWS_AT_A_TIME):
        if row.module == "model":
            cells.setdefault((row.batch_size, row.context), {})[row.positions] = row
    measured = {cell: by_count for cell, by_count in sorted(cells.items()) if 1 in by_count}
    without = {
        cell: _beyond_graphs({n: row.execution for n, row in by_count.items()})
        for cell, by_count in measured.items()
    }
    host = _host_seconds(measured[cell][n] for cell, counts in without.items() for n in counts)
    reported: dict[tuple[int, int], list[tuple[float, int, bool]]] = {}
    for line in boundaries:
        if line.module == "model":
            found = reported.setdefault((line.batch_size, line.context), [])
            found.append((line.epsilon, line.positions, line.at_limit))
    curves = []
    for cell, by_count in in_pieces(measured.items(), CURVES_AT_A_TIME):
        one, out = by_count[1].median_seconds, without[cell]
        # The ratios come from pairs, side by side in time; the medians do not.
        ratios = {
            n: max(row.ratio, host / one) if n in out else row.ratio
            for n, row in by_count.items()
            if n != 1
        }
        points = tuple(sorted({1: 1.0, **ratios}.items()))
        nfp = tuple(sorted(reported.get(cell, ())))
        curves.append(StepCurve(*cell, one, points, min(out, default=None), nfp))
    return tuple(curves)


def _beyond_graphs(ways: Mapping[int, str]) -> frozenset[int]:
    """Counts of positions without a CUDA graph, where N = 1 has one; ``ways`` is how each ran."""
    if ways.get(1, NO_GRAPH) == NO_GRAPH:
        return frozenset()
    return frozenset(n for n, way in ways.items() if way == NO_GRAPH)


def _host_seconds(rows: Iterable[CurveRow]) -> float:
    """What the host needs for a step without a CUDA graph; 0 if none was measured.

    It hardly depends on the batch, and no such step takes less, though the GPU's clock, on which
    probes are timed, may see less of it where the host was ahead. So launching takes at most the
    upper end of each of these steps.
    """
    uppers = [row.seconds_upper for row in rows if row.seconds_upper is not None]
    return STEP_OVER_LAUNCH * min(uppers, default=0.0)


def from_profile(profile: Profile, name: str = "the profile") -> Source:
    """The step times of a profile.

    Raises:
        SourceError: if it holds no measurement, or none of the whole step, or of batches or counts
            beyond all that a server runs.
    """
    if not profile.curves:
        reason = f" (the probe was {profile.run.state}: {profile.run.reason})"
        raise SourceError(
            f"{name} is empty: its probe measured nothing"
            f"{reason if profile.run.reason else ''}; measure for longer, or under load"
        )
    try:
        curves = curves_of_rows(profile.curves, profile.boundaries)
    except ValueError as error:
        raise SourceError(f"{name} cannot be used: {error}; measure it anew") from None
    if not curves:
        modules = ", ".join(sorted({row.module for row in profile.curves}))
        raise SourceError(
            f"{name} has no curve of the whole step (model), only of {modules}: draft lengths "
            f"need it, measure again"
        )
    return Source(
        "profile",
        name,
        profile.model.name,
        curves,
        profile.environment.device.name,
        profile.environment.vllm,
    )


def from_samples(samples: Samples, name: str, vllm: str | None = None) -> Source:
    """The step times on a server's /metrics; of several engines the dearest at each point.

    Raises:
        SourceError: if the server has measured no step yet.
    """
    seconds: dict[tuple[int, int], dict[int, float]] = {}
    models: set[str] = set()
    try:
        without, ratios, nfp = _without_graph(samples), _ratios(samples), _boundaries(samples)
        for labels, value in samples.get("vllm_nfp_module_latency_seconds", ()):
            if labels["module"] != "model":
                continue
            models.add(labels["model_name"])
            cell = seconds.setdefault((count(labels["batch_size"]), count(labels["context"])), {})
            positions = count(labels["positions"])
            cell[positions] = max(value, cell.get(positions, 0.0))
        curves = tuple(
            replace(
                curve_of_seconds(*cell, by_count, ratios.get(cell)),
                without_graph_from=without.get(cell),
                boundaries=nfp.get(cell, ()),
            )
            for cell, by_count in sorted(seconds.items())
            if 1 in by_count
        )
    except KeyError as error:
        raise SourceError(
            f"the step times of {name} lack the label {error.args[0]!r:.80}: is the server's "
            f"vllm-nfp of another version?"
        ) from None
    except ValueError as error:
        raise SourceError(
            f"the step times of {name} cannot be used: {error}; is it a server with this vllm-nfp?"
        ) from None
    if not curves:
        raise SourceError(
            f"{name} has measured no step yet: send it requests and wait until "
            f"vllm-nfp table shows estimates"
        )
    return Source(
        "server",
        name,
        ", ".join(sorted(models)),
        curves,
        vllm=vllm,
        drafting=live_drafting(samples),
    )


def _ratios(samples: Samples) -> dict[tuple[int, int], dict[int, float]]:
    """t(N) / t(1) by (batch size, context) and N, as the server's own recommendation uses it.

    Empty for a server whose vllm-nfp is older than the metric.
    """
    found: dict[tuple[int, int], dict[int, float]] = {}
    for labels, value in samples.get(STEP_RATIO, ()):
        cell = found.setdefault((count(labels["batch_size"]), count(labels["context"])), {})
        positions = count(labels["positions"])
        if positions != 1:
            cell[positions] = max(value, cell.get(positions, 0.0))
    return found


def _boundaries(
    samples: Samples,
) -> dict[tuple[int, int], tuple[tuple[float, int, bool], ...]]:
    """The whole step's NFP by (batch size, context); of several engines the smallest."""
    limits = {
        _line(labels): bool(value)
        for labels, value in samples.get("vllm_nfp_positions_at_limit", ())
        if labels["module"] == "model"
    }
    found: dict[tuple[int, int], dict[float, tuple[int, bool]]] = {}
    for labels, value in samples.get("vllm_nfp_positions", ()):
        if labels["module"] == "model":
            line = _line(labels)
            cell = found.setdefault((line[1], line[2]), {})
            nfp = (int(value), limits.get(line, False))
            cell[line[3]] = min(nfp, cell.get(line[3], nfp))
    return {
        cell: tuple((epsilon, *nfp) for epsilon, nfp in sorted(by_epsilon.items()))
        for cell, by_epsilon in found.items()
    }


def _line(labels: Mapping[str, str]) -> tuple[str, int, int, float]:
    """Engine, batch size, context and epsilon of a boundary."""
    cell = count(labels["batch_size"]), count(labels["context"])
    return labels.get("engine", ""), *cell, float(labels["epsilon"])


def _without_graph(samples: Samples) -> dict[tuple[int, int], int]:
    """For each (batch size, context) whose N = 1 has a CUDA graph, the smallest N without one."""
    ways: dict[tuple[int, int], dict[int, str]] = {}
    for labels, _ in samples.get("vllm_nfp_execution_info", ()):
        if labels["module"] == "model":
            cell = ways.setdefault((count(labels["batch_size"]), count(labels["context"])), {})
            cell[count(labels["positions"])] = labels["execution"]
    beyond = {key: _beyond_graphs(by_count) for key, by_count in ways.items()}
    return {key: min(counts) for key, counts in beyond.items() if counts}


def from_predictions(found: Predictions) -> Source:
    """The predicted step times of the batch sizes and contexts that were asked for."""
    curves = []
    for context in found.contexts:
        for batch_size in found.batch_sizes:
            cell = found.cell("model", batch_size, context)
            times = dict(zip(cell.positions, cell.seconds, strict=True))
            nfp = tuple(sorted((b.epsilon, b.nfp, b.at_limit) for b in cell.boundaries))
            curve = curve_of_seconds(batch_size, context, times)
            curves.append(replace(curve, boundaries=nfp))
    return Source("prediction", "the prediction", found.model, tuple(curves), found.hardware)


def live_acceptance(samples: Samples, engine: str | None = None) -> LiveAcceptance:
    """Acceptance by place in the draft, from vLLM's counters; over all engines unless one is named.

    Raises:
        SourceError: if the server does not speculate, has drafted nothing, or its counters
            contradict each other.
    """

    def values(name: str) -> list[tuple[Mapping[str, str], float]]:
        found = samples.get(name, ())
        return [(of, v) for of, v in found if engine is None or of.get("engine") == engine]

    if not values(DRAFTS):
        raise SourceError(
            "the server counts no drafts (it has no --speculative-config): give --acceptance"
        )
    places: dict[int, float] = {}
    try:
        for labels, value in values(ACCEPTED_PER_POSITION):
            place = count(labels["position"])
            places[place] = places.get(place, 0.0) + value
    except (KeyError, ValueError) as error:
        raise SourceError(f"the server's counters by position cannot be read: {error}") from None
    if sorted(places) != list(range(len(places))) or len(places) > MOST_PLACES:
        raise SourceError("the server's counters by position have gaps: give --acceptance")
    drafts = math.fsum(value for _, value in values(DRAFTS))
    drafted = math.fsum(value for _, value in values(DRAFTED))
    try:
        acceptance = from_counters(drafts, [places[place] for place in sorted(places)])
    except AcceptanceError as error:
        raise SourceError(str(error)) from None
    return LiveAcceptance(acceptance, drafts, drafted / drafts)


def live_drafting(samples: Samples, engine: str | None = None) -> LiveDrafting | None:
    """What the server's controllers of draft lengths tell; None where there is none.

    Of all engines unless one is named.
    """

    def values(name: str) -> list[tuple[Mapping[str, str], float]]:
        found = samples.get(name, ())
        return [(of, v) for of, v in found if engine is None or of.get("engine") == engine]

    seconds = [value for _, value in values(DRAFT_SECONDS)]
    methods = {labels.get("method") for labels, _ in values(DRAFT_CONTROL)}
    if not seconds and not methods:
        return None
    positive = [value for value in seconds if value > 0.0]
    return LiveDrafting(
        frozenset(method for method in methods if method),
        statistics.median(positive or seconds) if seconds else None,
    )


def served_method(drafting: LiveDrafting | None) -> str:
    """The method by which a server makes its drafts; ngram where it is not known, or several."""
    methods = frozenset[str]() if drafting is None else drafting.methods
    return next(iter(methods)) if len(methods) == 1 else "ngram"


def served_cost(method: str, drafting: LiveDrafting | None) -> DraftCost | None:
    """What drafts by this method cost on a server; None: the server tells no cost of this method.

    This is the one rule of ``recommend`` and of vllm_nfp_recommended_draft_length: a look-up is
    free, and a drafted token of another method costs what the controller has learned of it.
    """
    if method in LOOK_UPS:
        return FREE
    known = method in DRAFT_METHODS and drafting is not None and drafting.methods <= {method}
    seconds = drafting.token_seconds if known and drafting is not None else None
    if seconds is None or not 0.0 < seconds < math.inf:
        return None
    return DraftCost(seconds_per_token=seconds)


def differences(source: Source, samples: Samples) -> tuple[str, ...]:
    """Why the source's step times may not be those of the server with these metrics.

    The GPU's name is not on /metrics; where the server's own probe has timed a step of the source
    as well, the times tell.
    """
    told = []
    served = sorted(
        {
            labels["model_name"]
            for name in (DRAFTS, "vllm_nfp_state")
            for labels, _ in samples.get(name, ())
            if "model_name" in labels
        }
    )
    if served and source.model not in served:
        told.append(
            f"{source.name} is of the model {source.model}, the server serves "
            f"{', '.join(served)}: its draft lengths may not fit"
        )
    try:
        live = from_samples(samples, "the server")
    except SourceError:
        return tuple(told)
    theirs = {(c.batch_size, c.context): c.seconds_at_one for c in live.curves}
    for curve in source.curves:
        other = theirs.get((curve.batch_size, curve.context))
        if other is not None and not 1 / SAME_STEP < other / curve.seconds_at_one < SAME_STEP:
            told.append(
                f"a step at B={curve.batch_size} L={curve.context} takes "
                f"{curve.seconds_at_one * 1e3:.3g} ms in {source.name} and {other * 1e3:.3g} ms on "
                f"the server: another GPU, vLLM or model; take the server's URL instead"
            )
            break
    return tuple(told)
