"""The sections of the modules: curves and tables of boundaries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllm_nfp.results.profile import Profile
from vllm_nfp.text import duration
from vllm_nfp.types import Boundary, Cell, CurvePoint, Module, Prediction

MODULE_NAMES = {
    "model": "Whole step",
    "attention": "Attention",
    "linear_attention": "Linear attention",
    "dense_ffn": "Dense FFN",
    "moe_ffn": "MoE FFN",
    "communication": "Communication",
}
MODULE_TEXTS = {
    "model": "The decode step as the server launches it, including the LM head over all positions.",
    "attention": "The attention operator of one layer with the KV cache, without its projections.",
    "linear_attention": "One layer that keeps a recurrent state in place of a KV cache, with its "
    "projections.",
    "dense_ffn": "The feed-forward block of one layer.",
    "moe_ffn": "Router, experts and shared experts of one layer.",
    "communication": "The collectives of one layer; other modules do not contain them.",
}


@dataclass(frozen=True, slots=True)
class NfpRow:
    """One line of the table of boundaries."""

    batch_size: int
    context: str
    """In tokens; "any" where all contexts have the same answers."""
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
    legend: tuple[tuple[int, str], ...]
    """(batch size, its line and marker as SVG)"""
    plots: tuple[tuple[str, str], ...]
    """(caption, SVG)"""
    rows: tuple[NfpRow, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """NFP of the whole step by batch size and context."""

    contexts: tuple[int, ...]
    rows: tuple[tuple[int, tuple[Boundary | None, ...]], ...]
    """(batch size, answer of each context)"""


def _boundaries(profile: Profile, epsilon: float) -> dict[Cell, Boundary]:
    rows = (row for row in profile.boundaries if row.epsilon == epsilon)
    return {row.cell: row for row in rows}


def _predictions(profile: Profile, epsilon: float) -> dict[Cell, Prediction]:
    rows = (row for row in profile.predictions if row.epsilon == epsilon)
    return {row.cell: row for row in rows}


def matrix(profile: Profile, epsilon: float) -> Matrix:
    """NFP of the whole step; without rows where the profile has none."""
    found = {
        (batch_size, context): row
        for (module, batch_size, context), row in _boundaries(profile, epsilon).items()
        if module == Module.MODEL
    }
    contexts = tuple(sorted({context for _, context in found}))
    batch_sizes = sorted({batch_size for batch_size, _ in found})
    return Matrix(
        contexts, tuple((b, tuple(found.get((b, c)) for c in contexts)) for b in batch_sizes)
    )


def sections(profile: Profile, epsilon: float) -> tuple[Section, ...]:
    """The sections of the modules that the profile has, in the order of :data:`Module`."""
    present = {module for module, _, _ in profile.cells}
    return tuple(_section(profile, m, epsilon) for m in Module if m in present)


def _section(profile: Profile, module: str, epsilon: float) -> Section:
    keys = shown_cells(profile)[module]
    curves, boundaries = profile.curves_by_cell(), _boundaries(profile, epsilon)
    predictions = _predictions(profile, epsilon)
    rows = tuple(
        NfpRow(
            key.batch_size, context, duration(curves[key][0].median_seconds), boundaries[key],
            predictions.get(key),
        )
        for context, cells in keys.items()
        for key in cells
        if key in boundaries
    )  # fmt: skip
    looks = _looks(keys)
    return Section(
        module,
        MODULE_NAMES[module],
        MODULE_TEXTS[module],
        _legend(looks),
        tuple(_plots(profile, module, keys, looks, epsilon)),
        rows,
    )


def _looks(cells: Mapping[str, Sequence[Cell]]) -> tuple[dict[int, int], ...]:
    """Colour and marker of each batch size, in one plot for as many as there are colours."""
    from vllm_nfp.report.themed_svg import SERIES

    batch_sizes = sorted({cell.batch_size for of in cells.values() for cell in of})
    width = -(-len(batch_sizes) // -(-len(batch_sizes) // SERIES))
    parts = (batch_sizes[first : first + width] for first in range(0, len(batch_sizes), width))
    return tuple({batch_size: look for look, batch_size in enumerate(part)} for part in parts)


def _legend(looks: Sequence[Mapping[int, int]]) -> tuple[tuple[int, str], ...]:
    from markupsafe import Markup

    from vllm_nfp.report.themed_svg import legend_mark

    # Our own SVG, made from numbers only.
    return tuple(
        (batch_size, Markup(legend_mark(look)))
        for part in looks
        for batch_size, look in part.items()
    )


def times(profile: Profile) -> Iterable[tuple[str, Sequence[CurvePoint]]]:
    """(title, curve) of each cell that is shown."""
    curves = profile.curves_by_cell()
    for module, contexts in shown_cells(profile).items():
        for context, cells in contexts.items():
            for cell in cells:
                where = f"B = {cell.batch_size}, L = {context}"
                yield f"{MODULE_NAMES[module]}, {where}", curves[cell]


def shown_cells(profile: Profile) -> dict[str, dict[str, tuple[Cell, ...]]]:
    """The cells that are worth a line, by module and context, ascending in batch size.

    A module whose curves are the same in all contexts is shown once, in the context "any".
    """
    curves = profile.curves_by_cell()
    found: dict[str, dict[str, tuple[Cell, ...]]] = {}
    for module in dict.fromkeys(cell.module for cell in curves):
        mine = [cell for cell in curves if cell.module == module]
        contexts = sorted({cell.context for cell in mine})
        if len(contexts) > 1 and _know_no_context(module, mine, curves):
            least = {cell.batch_size: cell for cell in reversed(mine)}
            found[module] = {"any": tuple(least[b] for b in sorted(least))}
        else:
            found[module] = {
                str(context): tuple(cell for cell in mine if cell.context == context)
                for context in contexts
            }
    return found


def _know_no_context(
    module: str, cells: Iterable[Cell], curves: Mapping[Cell, Sequence[CurvePoint]]
) -> bool:
    if module in (Module.MODEL, Module.ATTENTION):
        return False
    alike: dict[int, object] = {}
    return all(
        told == alike.setdefault(cell.batch_size, told)
        for cell in cells
        for told in [[(row.positions, row.ratio, row.basis) for row in curves[cell]]]
    )


def _plots(
    profile: Profile,
    module: str,
    cells: Mapping[str, Sequence[Cell]],
    looks: Sequence[Mapping[int, int]],
    epsilon: float,
) -> Iterable[tuple[str, str]]:
    """(caption, SVG) of each context; of parts of the batch sizes where there are many."""
    from markupsafe import Markup

    from vllm_nfp.report.figures import Line, plot_cells

    curves, boundaries = profile.curves_by_cell(), _boundaries(profile, epsilon)
    predictions = _predictions(profile, epsilon)
    for part in looks:
        first, last = min(part), max(part)
        sizes = f", B = {first} to {last}" if len(looks) > 1 else ""
        for context, keys in cells.items():
            lines = [
                Line(
                    key.batch_size, part[key.batch_size], curves[key], boundaries.get(key),
                    predictions.get(key),
                )
                for key in keys
                if key.batch_size in part
            ]  # fmt: skip
            if not lines:
                continue
            tokens = "any context" if context == "any" else f"context {context} tokens"
            title = f"{MODULE_NAMES[module]}: time of N positions over one, {tokens}{sizes}"
            slug = f"plot-{module.replace('_', '-')}-{context}-{first}"
            # Our own SVG, made from numbers only.
            caption = "any L" if context == "any" else f"L = {context}"
            yield f"{caption}{sizes}", Markup(plot_cells(lines, epsilon, title, slug))
