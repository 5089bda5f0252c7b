"""Step times of a model on a device, from a profile or a prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from vllm_nfp.draft.curve import StepCurve, curve_of_seconds
from vllm_nfp.draft.drafting import UNKNOWN, Drafting
from vllm_nfp.give_way import in_pieces
from vllm_nfp.types import Module

if TYPE_CHECKING:
    from vllm_nfp.principle.prediction import Predictions
    from vllm_nfp.results.profile import Profile
    from vllm_nfp.types import Boundary, CurvePoint

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


def curves_of_rows(
    rows: Iterable[CurvePoint], boundaries: Iterable[Boundary] = ()
) -> tuple[StepCurve, ...]:
    """The whole step's curves among the rows of a profile or snapshot, one for each cell.

    Where a step with one position has a CUDA graph, steps without one take at least the time that
    the host needs, see :func:`_host_seconds`.
    """
    cells: dict[tuple[int, int], dict[int, CurvePoint]] = {}
    for row in in_pieces(rows, ROWS_AT_A_TIME):
        if row.module == "model":
            cells.setdefault((row.batch_size, row.context), {})[row.positions] = row
    measured = {cell: by_count for cell, by_count in sorted(cells.items()) if 1 in by_count}
    without = {
        cell: beyond_graphs({n: row.execution for n, row in by_count.items()})
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


def beyond_graphs(ways: Mapping[int, str]) -> frozenset[int]:
    """Counts of positions without a CUDA graph, where N = 1 has one.

    Args:
        ways: how a step of each count ran.
    """
    if ways.get(1, NO_GRAPH) == NO_GRAPH:
        return frozenset()
    return frozenset(n for n, way in ways.items() if way == NO_GRAPH)


def _host_seconds(rows: Iterable[CurvePoint]) -> float:
    """Time that the host needs for a step without a CUDA graph; 0 if none was measured.

    It hardly depends on the batch, and no such step takes less. Probes are timed on the GPU's
    clock, which may see less of it where the host ran ahead. So launching takes at most the upper
    end of the interval of each of these steps.
    """
    uppers = [row.seconds_upper for row in rows if row.seconds_upper is not None]
    return STEP_OVER_LAUNCH * min(uppers, default=0.0)


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
    )


def from_predictions(found: Predictions) -> Source:
    """The predicted step times of the batch sizes and contexts that were asked for."""
    curves = []
    for context in found.contexts:
        for batch_size in found.batch_sizes:
            cell = found.cell(Module.MODEL, batch_size, context)
            times = dict(zip(cell.positions, cell.seconds, strict=True))
            nfp = tuple(sorted((b.epsilon, b.nfp, b.at_limit) for b in cell.boundaries))
            curve = curve_of_seconds(batch_size, context, times)
            curves.append(replace(curve, boundaries=nfp))
    return Source("prediction", "the prediction", found.model, tuple(curves), found.hardware)
