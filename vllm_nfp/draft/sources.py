"""Step times of a model on a device, from a profile or a prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.drafting import UNKNOWN, Drafting
from vllm_nfp.give_way import in_pieces
from vllm_nfp.types import Basis, cell_name

if TYPE_CHECKING:
    from vllm_nfp.results.profile import Profile
    from vllm_nfp.types import Boundary, CurvePoint, Environment

PREDICTED_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
PREDICTED_CONTEXTS = (1024, 4096, 16384)
"""Of a prediction, where nobody asks for others."""
STEP_OVER_LAUNCH = 1.25
"""Duration of a step that the host bounds, over the time to launch its forward pass, which is all
that a probe sees: scheduling, sampling and drafting come on top. On H100 such steps of the engine
took 1.2 to 1.8 times as long (benchmarks/results/2026-11-26-h100-draft-lengths)."""
ROWS_AT_A_TIME = 512
"""Rows that are sorted into cells between two pauses: about 0.1 ms."""
CURVES_AT_A_TIME = 8
"""Curves that are built between two pauses: about 0.1 ms."""
NO_GRAPH = "none"
"""How a step is recorded of which no part ran in a CUDA graph."""

Kind = Literal["profile", "server", "prediction"]


class SourceError(ValueError):
    """Step times or acceptance that cannot be used; one sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class LiveTraffic:
    """An engine at its last step."""

    curve: StepCurve
    """At the real batch size and context."""
    settled: int | None = None
    """Draft length that draft control has measured to be the best there; None: it has not."""


@dataclass(frozen=True, slots=True)
class Source:
    """Step times of one model on one device."""

    kind: Kind
    name: str
    """The file, URL or directory, for messages."""
    model: str
    curves: tuple[StepCurve, ...]
    device: str | None = None
    """None: not known."""
    vllm: str | None = None
    """vLLM's version; None: not known."""
    drafting: Drafting = UNKNOWN
    """How the server makes its drafts."""
    live: tuple[LiveTraffic, ...] = ()
    """Of a server: at the last step, one for each engine."""
    max_batch_size: int | None = None
    """Sequences that the profile's server could batch; None: not more than were measured."""
    cut_layers: tuple[int, int] | None = None
    """Layers that were timed as a model, and those of the whole model, where it has more."""
    whole: bool = False
    """Every reported batch size that the server can have at a context has its curve there."""
    environment: Environment | None = None
    """Of a profile: the settings of its server."""
    notes: tuple[str, ...] = ()
    """Of a prediction: what it rests on and leaves out, a sentence each."""
    origins: tuple[str, ...] = ()
    """Those of the notes that say what it rests on, and warn of nothing."""


def curves_of_rows(
    rows: Iterable[CurvePoint],
    boundaries: Iterable[Boundary] = (),
    host_rows: Iterable[CurvePoint] = (),
) -> tuple[StepCurve, ...]:
    """The whole step's curves among the rows of a profile or snapshot, one for each cell.

    Where a step with one position has a CUDA graph, steps without one take at least the time that
    the host needs, see :func:`_host_seconds`.

    Args:
        boundaries: of the same cells.
        host_rows: further rows that show what the host needs.
    """
    cells = _by_cell(rows)
    host = _host_seconds([cells, _by_cell(host_rows)])
    reported: dict[tuple[int, int], list[tuple[float, int, bool]]] = {}
    for line in boundaries:
        if line.module == "model":
            found = reported.setdefault((line.batch_size, line.context), [])
            found.append((line.epsilon, line.positions, line.at_limit))
    return tuple(
        _curve(cell, by_count, host, tuple(sorted(reported.get(cell, ()))))
        for cell, by_count in in_pieces(cells.items(), CURVES_AT_A_TIME)
    )


_Cells = Mapping[tuple[int, int], Mapping[int, "CurvePoint"]]
"""Rows of the whole step by (batch size, context) and N; each cell has N = 1."""


def _by_cell(rows: Iterable[CurvePoint]) -> _Cells:
    cells: dict[tuple[int, int], dict[int, CurvePoint]] = {}
    for row in in_pieces(rows, ROWS_AT_A_TIME):
        if row.module == "model":
            cells.setdefault((row.batch_size, row.context), {})[row.positions] = row
    return {cell: by_count for cell, by_count in sorted(cells.items()) if 1 in by_count}


def _curve(
    cell: tuple[int, int],
    by_count: Mapping[int, CurvePoint],
    host: float,
    nfp: tuple[tuple[float, int, bool], ...],
) -> StepCurve:
    out, one = _without_graph(by_count), by_count[1].median_seconds
    points, intervals, bases = [(1, 1.0)], [(1.0, 1.0)], [by_count[1].basis]
    for n, row in sorted(by_count.items())[1:]:
        # The ratios come from pairs, side by side in time; the medians do not.
        least = host / one if n in out else 0.0
        upper = math.inf if row.ratio_upper is None else row.ratio_upper
        points.append((n, max(row.ratio, least)))
        intervals.append((max(row.ratio_lower, least), max(upper, least)))
        bases.append(row.basis)
    return StepCurve(
        *cell, one, tuple(points), min(out, default=None), nfp, tuple(bases), tuple(intervals)
    )


def beyond_graphs(ways: Mapping[int, str]) -> frozenset[int]:
    """Counts of positions without a CUDA graph, where N = 1 has one.

    Args:
        ways: how a step of each count ran.
    """
    if ways.get(1, NO_GRAPH) == NO_GRAPH:
        return frozenset()
    return frozenset(n for n, way in ways.items() if way == NO_GRAPH)


def _without_graph(by_count: Mapping[int, CurvePoint]) -> frozenset[int]:
    return beyond_graphs({n: row.execution for n, row in by_count.items()})


def _host_seconds(tables: Iterable[_Cells]) -> float:
    """Time that the host needs for a step without a CUDA graph; 0 if none was measured.

    It hardly depends on the batch, and no such step takes less. Probes are timed on the GPU's
    clock, which may see less of it where the host ran ahead. So launching takes at most the upper
    end of the interval of each of these steps. Predicted steps show nothing of this host: their
    ratios hold the predicted launches already.
    """
    uppers = [
        by_count[n].seconds_upper or math.inf
        for cells in tables
        for by_count in in_pieces(cells.values(), CURVES_AT_A_TIME)
        for n in _without_graph(by_count)
        if by_count[n].basis != Basis.PREDICTED
    ]
    least = min(uppers, default=math.inf)
    return STEP_OVER_LAUNCH * least if least < math.inf else 0.0


def from_profile(profile: Profile, name: str = "the profile") -> Source:
    """The step times of a profile.

    Raises:
        SourceError: if it holds no measurement, none of the whole step, or a batch size or count
            of positions beyond any that a server runs.
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
        raise SourceError(f"{name} cannot be used: {error}; measure it again") from None
    if not curves:
        modules = ", ".join(sorted({row.module for row in profile.curves}))
        raise SourceError(
            f"{name} has no curve of the whole step (model), only of {modules}, and draft lengths "
            f"need it: measure again"
        )
    return Source(
        "profile",
        name,
        profile.model.name,
        curves,
        profile.environment.device.name,
        profile.environment.vllm,
        whole=_is_whole(profile, curves),
        max_batch_size=max(profile.environment.max_num_seqs, *(c.batch_size for c in curves)),
        cut_layers=profile.model.cut_layers,
        environment=profile.environment,
    )


def _is_whole(profile: Profile, curves: Iterable[StepCurve]) -> bool:
    """Whether it is a server's whose cells without a curve do not fit it.

    A measurement leaves out cells that cannot be probed as well.
    """
    known = {(curve.batch_size, curve.context) for curve in curves}
    missing = {(b, c) for b, _ in known for _, c in known} - known
    skipped = profile.run.skipped_cells
    return not profile.probe.wanted_samples and all(cell_name(cell) in skipped for cell in missing)
