"""The sections of the modules: curves, tables of boundaries, and the tiles of the whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.results.profile import Profile
from vllm_nfp.text import duration
from vllm_nfp.types import Boundary, Cell, Module, Prediction

MODULE_NAMES = {
    "model": "Whole step",
    "attention": "Attention",
    "dense_ffn": "Dense FFN",
    "moe_ffn": "MoE FFN",
    "communication": "Communication",
}
MODULE_TEXTS = {
    "model": "The decode step as the server launches it, including the LM head over all positions.",
    "attention": "The attention operator of one layer with the KV cache, without its projections.",
    "dense_ffn": "The feed-forward block of one layer.",
    "moe_ffn": "Router, experts and shared experts of one layer.",
    "communication": "The collectives of one layer; other modules do not contain them.",
}


@dataclass(frozen=True, slots=True)
class NfpRow:
    """One line of the table of boundaries."""

    batch_size: int
    context: int
    baseline: str
    """t(1) with its unit."""
    boundary: Boundary
    prediction: Prediction | None


@dataclass(frozen=True, slots=True)
class Section:
    """One module."""

    name: str
    title: str
    text: str
    plots: tuple[tuple[str, str], ...]
    """(caption, SVG)"""
    rows: tuple[NfpRow, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """NFP of the whole step at one batch size, as text."""

    batch_size: int
    text: str
    contexts: str


def _boundaries(profile: Profile, epsilon: float) -> dict[Cell, Boundary]:
    rows = (row for row in profile.boundaries if row.epsilon == epsilon)
    return {row.cell: row for row in rows}


def _predictions(profile: Profile, epsilon: float) -> dict[Cell, Prediction]:
    rows = (row for row in profile.predictions if row.epsilon == epsilon)
    return {row.cell: row for row in rows}


def tiles(profile: Profile, epsilon: float) -> tuple[Tile, ...]:
    """NFP of the whole step, one tile for each batch size over all its contexts."""
    found: dict[int, list[Boundary]] = {}
    for (module, batch_size, _), row in sorted(_boundaries(profile, epsilon).items()):
        if module == "model":
            found.setdefault(batch_size, []).append(row)
    return tuple(_tile(batch_size, rows) for batch_size, rows in sorted(found.items()))


def _tile(batch_size: int, rows: Sequence[Boundary]) -> Tile:
    low = min(rows, key=lambda row: row.positions)
    high = max(rows, key=lambda row: row.positions)
    text = _nfp_short(low)
    if low.positions != high.positions:
        text = f"{low.positions} to {_nfp_short(high)}"
    contexts = sorted(row.context for row in rows)
    span = f"L = {contexts[0]}" if len(contexts) == 1 else f"L = {contexts[0]} to {contexts[-1]}"
    return Tile(batch_size, text, span)


def _nfp_short(row: Boundary) -> str:
    return f"{row.positions}{'+' if row.at_limit else ''}"


def sections(profile: Profile, epsilon: float) -> tuple[Section, ...]:
    """The sections of the modules that the profile has, in the order of :data:`Module`."""
    present = {module for module, _, _ in profile.cells}
    return tuple(_section(profile, m, epsilon) for m in Module if m in present)


def _section(profile: Profile, module: str, epsilon: float) -> Section:
    from markupsafe import Markup

    from vllm_nfp.report.figures import Line, plot_cells

    curves, boundaries = profile.curves_by_cell(), _boundaries(profile, epsilon)
    predictions = _predictions(profile, epsilon)
    cells = [key for key in curves if key[0] == module]
    plots = []
    for context in sorted({key[2] for key in cells}):
        keys = [key for key in cells if key[2] == context]
        lines = [Line(k[1], curves[k], boundaries.get(k), predictions.get(k)) for k in keys]
        title = f"{MODULE_NAMES[module]}: time of N positions over one, context {context} tokens"
        svg = plot_cells(lines, epsilon, title, f"plot-{module.replace('_', '-')}-{context}")
        # Our own SVG, made from numbers only.
        plots.append((f"L = {context}", Markup(svg)))
    rows = tuple(
        NfpRow(
            key[1], key[2], duration(curves[key][0].median_seconds), boundaries[key],
            predictions.get(key),
        )
        for key in cells
        if key in boundaries
    )  # fmt: skip
    return Section(module, MODULE_NAMES[module], MODULE_TEXTS[module], tuple(plots), rows)
