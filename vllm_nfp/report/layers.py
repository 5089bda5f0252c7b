"""The heat maps: t(N) / t(1) of each timed layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.report.modules import MODULE_NAMES
from vllm_nfp.results.profile import Profile
from vllm_nfp.text import duration
from vllm_nfp.types import Cell, LayerLatency, Module

MOST_LAYER_CELLS = 9
"""Maximum number of cells of a module that the page shows; the profile holds all."""
HOTTEST_RATIO = 2.0
"""Ratio t(N) / t(1) with full colour in the heat map."""


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One cell of a heat map."""

    text: str
    percent: int
    """Strength of the colour, 0 to 85."""
    free: bool


@dataclass(frozen=True, slots=True)
class HeatMap:
    """t(N) / t(1) by layer and positions, of one module in one cell."""

    title: str
    positions: tuple[int, ...]
    rows: tuple[tuple[int, str, tuple[HeatCell | None, ...]], ...]
    """(layer, t(1) with its unit, a cell for each N beyond 1)"""


def heat_maps(profile: Profile, epsilon: float) -> tuple[tuple[str, tuple[HeatMap, ...]], ...]:
    """Module titles with the maps of at most :data:`MOST_LAYER_CELLS` of their cells."""
    by_cell: dict[Cell, list[LayerLatency]] = {}
    for row in profile.layer_times:
        by_cell.setdefault(row.cell, []).append(row)
    result = []
    for module in Module:
        keys = sorted((k for k in by_cell if k[0] == module), key=lambda k: (k[2], k[1]))
        shown = keys[:: max(1, -(-len(keys) // MOST_LAYER_CELLS))]
        maps = tuple(_heat_map(key, by_cell[key], epsilon) for key in shown)
        if maps:
            result.append((MODULE_NAMES[module], maps))
    return tuple(result)


def _heat_map(key: Cell, rows: Sequence[LayerLatency], epsilon: float) -> HeatMap:
    times = {(row.layer, row.positions): row.median_seconds for row in rows}
    positions = tuple(sorted({row.positions for row in rows} - {1}))
    layers = sorted({row.layer for row in rows})
    return HeatMap(
        f"B = {key[1]}, L = {key[2]}",
        positions,
        tuple(
            (
                layer,
                duration(times[layer, 1]) if (layer, 1) in times else "-",
                tuple(
                    _heat_cell(times.get((layer, n)), times.get((layer, 1)), epsilon)
                    for n in positions
                ),
            )
            for layer in layers
        ),
    )


def _heat_cell(many: float | None, one: float | None, epsilon: float) -> HeatCell | None:
    if many is None or one is None:
        return None
    ratio = many / one
    share = min(1.0, max(0.0, (ratio - 1.0) / (HOTTEST_RATIO - 1.0)))
    return HeatCell(f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}", round(85 * share),
                    ratio <= 1.0 + epsilon)  # fmt: skip
