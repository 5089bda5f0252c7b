"""What changed between two profiles: environment, NFP, step times, each with its significance.

Two results differ significantly if their 95 % intervals do not overlap, and both were measured:
where one profile infers or predicts, nothing is said. Where nothing has changed that happens
by chance less often than 5 % would suggest: the difference of two estimates of equal spread must
then exceed 2 x 1.96 standard errors of one, which is 2.77 of the difference's own, a chance of
0.6 %. The intervals hold what scattered within a run. Clocks,
temperature and other tenants of the machine differ between runs as well; ratios t(N) / t(1), and
with them NFP, are hardly touched by that, absolute times are.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vllm_nfp.dataframe import to_dataframe
from vllm_nfp.results.compare_settings import SUBJECTS, SettingChange, setting_changes
from vllm_nfp.results.profile import Profile, ProfileError
from vllm_nfp.types import Basis, Boundary, Cell, CurvePoint, Module

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
CHANCE_SHARE = 0.006
"""Share of comparisons without any change whose 95 % intervals do not overlap, by chance."""


class CompareError(ValueError):
    """The profiles cannot be compared; the message says why."""


@dataclass(frozen=True, slots=True)
class NfpChange:
    """NFP of one module, cell and epsilon in both profiles."""

    module: str
    batch_size: int
    context: int
    epsilon: float
    before: int
    before_lower: int
    before_upper: int | None
    """None: no probed count was over the line, so that there is no upper end."""
    after: int
    after_lower: int
    after_upper: int | None
    significant: bool | None
    """The intervals, up to the next probed count, do not overlap. None: not both were measured."""
    before_basis: Basis
    after_basis: Basis


@dataclass(frozen=True, slots=True)
class TimeChange:
    """Median time of one module, cell and number of positions in both profiles."""

    module: str
    batch_size: int
    context: int
    positions: int
    before_seconds: float
    after_seconds: float
    ratio: float
    """after / before."""
    significant: bool | None
    """None: one of the times has no interval, its samples being too few, or was not measured."""
    before_basis: Basis
    after_basis: Basis


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that was compared, changed or not."""

    settings: tuple[SettingChange, ...]
    nfp: tuple[NfpChange, ...]
    times: tuple[TimeChange, ...]
    only_before: tuple[str, ...]
    """Cells that the second profile lacks, as "attention B=32 L=4096"."""
    only_after: tuple[str, ...]
    cut: tuple[str, ...] = ()
    """Which profiles timed a part of the model's layers, as "before: 8 of 36 layers"."""
    schema: int = SCHEMA

    @property
    def different(self) -> tuple[tuple[str, SettingChange], ...]:
        """What the profiles are of, where that differs: ("models", its change)."""
        changes = {row.name: row for row in self.settings}
        return tuple((noun, changes[name]) for name, noun in SUBJECTS.items() if name in changes)

    @property
    def significant_nfp(self) -> tuple[NfpChange, ...]:
        """Boundaries that moved."""
        return tuple(row for row in self.nfp if row.significant)

    @property
    def significant_times(self) -> tuple[TimeChange, ...]:
        """Times that changed."""
        return tuple(row for row in self.times if row.significant)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain JSON values."""
        return dataclasses.asdict(self)

    def to_dataframe(self, table: Literal["nfp", "times", "settings"] = "nfp") -> pd.DataFrame:
        """One of the tables as a pandas DataFrame.

        Raises:
            NoPandasError: if pandas is not installed.
            ProfileError: if there is no such table.
        """
        kinds = {"nfp": NfpChange, "times": TimeChange, "settings": SettingChange}
        if table not in kinds:
            raise ProfileError(f"a comparison has no table {table!r}: take nfp, times or settings")
        return to_dataframe(getattr(self, table), kinds[table])


def compare(before: Profile, after: Profile) -> Comparison:
    """Compare two profiles where both have measured.

    Raises:
        CompareError: if they have no module, batch size and context in common.
    """
    old, new = before.curves_by_cell(), after.curves_by_cell()
    common = [cell for cell in old if cell in new]
    if not common:
        raise CompareError(
            f"the profiles have no cell in common: the first has {_range(old)}, "
            f"the second {_range(new)}; measure both with the same batch sizes and contexts"
        )
    return Comparison(
        settings=tuple(setting_changes(before, after)),
        nfp=tuple(_nfp(before, after, common)),
        times=tuple(_times(old, new, common)),
        only_before=tuple(_name(cell) for cell in old if cell not in new),
        only_after=tuple(_name(cell) for cell in new if cell not in old),
        cut=tuple(
            f"{which}: {cut[0]} of {cut[1]} layers"
            for which, profile in (("before", before), ("after", after))
            if (cut := profile.model.cut_layers)
        ),
    )


def _range(cells: Iterable[Cell]) -> str:
    cells = list(cells)
    if not cells:
        return "none"
    modules = [module for module in Module if any(cell[0] == module for cell in cells)]
    batch_sizes = sorted({cell[1] for cell in cells})
    contexts = sorted({cell[2] for cell in cells})
    return (
        f"{', '.join(modules)} at B={','.join(map(str, batch_sizes))} "
        f"L={','.join(map(str, contexts))}"
    )


def _name(cell: Cell) -> str:
    return f"{cell[0]} B={cell[1]} L={cell[2]}"


def _nfp(before: Profile, after: Profile, common: Iterable[Cell]) -> Iterable[NfpChange]:
    old, new = _boundaries(before), _boundaries(after)
    old_curves, new_curves = before.curves_by_cell(), after.curves_by_cell()
    for cell in common:
        old_grid, new_grid = _grid(old_curves[cell]), _grid(new_curves[cell])
        for epsilon in before.epsilons:
            a, b = old.get((cell, epsilon)), new.get((cell, epsilon))
            if a is not None and b is not None:
                yield NfpChange(
                    *cell,
                    epsilon,
                    a.positions,
                    a.lower,
                    _upper(a, old_grid),
                    b.positions,
                    b.lower,
                    _upper(b, new_grid),
                    _apart(_reach(a, old_grid), _reach(b, new_grid)) if _measured(a, b) else None,
                    a.basis,
                    b.basis,
                )


def _boundaries(profile: Profile) -> Mapping[tuple[Cell, float], Boundary]:
    return {(row.cell, row.epsilon): row for row in profile.boundaries}


def _grid(curve: Iterable[CurvePoint]) -> tuple[int, ...]:
    return tuple(row.positions for row in curve)


def _upper(row: Boundary, grid: tuple[int, ...]) -> int | None:
    """The interval's upper end; None if it is the largest probed count, where it is censored."""
    return None if row.upper >= grid[-1] else row.upper


def _reach(row: Boundary, grid: tuple[int, ...]) -> tuple[float, float]:
    """Where the boundary may lie among all counts, not only those that were probed.

    A boundary at a probed count lies anywhere from it to just before the next probed one.
    """
    beyond = bisect_right(grid, row.upper)
    return row.lower, grid[beyond] - 1 if beyond < len(grid) else math.inf


def _measured(a: Boundary | CurvePoint, b: Boundary | CurvePoint) -> bool:
    return a.basis is b.basis is Basis.MEASURED


def _apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[1] < b[0] or b[1] < a[0]


def _times(
    old: Mapping[Cell, tuple[CurvePoint, ...]],
    new: Mapping[Cell, tuple[CurvePoint, ...]],
    common: Iterable[Cell],
) -> Iterable[TimeChange]:
    for cell in common:
        later = {row.positions: row for row in new[cell]}
        for a in old[cell]:
            b = later.get(a.positions)
            if b is not None:
                yield TimeChange(
                    *cell,
                    a.positions,
                    a.median_seconds,
                    b.median_seconds,
                    b.median_seconds / a.median_seconds,
                    _times_apart(a, b),
                    a.basis,
                    b.basis,
                )


def _times_apart(a: CurvePoint, b: CurvePoint) -> bool | None:
    if a.seconds_upper is None or b.seconds_upper is None or not _measured(a, b):
        return None
    return _apart((a.seconds_lower, a.seconds_upper), (b.seconds_lower, b.seconds_upper))
