"""Claim: constants that were fitted to more public sets predict sets that they have not seen.

    python -m benchmarks.prediction.fit_folds curves.json [--page docs/validation.md]

For each entry of ``kernels.toml`` that public kernels decide, leaves sets out in turn, fits to the
others, and scores what was left out: once by family of models, once by model and tensor parallel
size (:func:`benchmarks.prediction.public_sets.family_of`, ``model_of``). The split is fitted to the
sets that ``public_sets`` lists as seen. What it has not seen is of families that it has seen, so it
is compared with the second kind of folds, on the points that it has not seen; where it has seen
none the device has assumed constants, which are compared with the first kind. What has more of them
within 10 % ships: the fit to all sets, or what the split gives. So the choice has seen all sets.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.prediction.fit_public import Fit, fits, fitted
from benchmarks.prediction.kernel_entries import as_toml
from benchmarks.prediction.public_sets import family_of, is_seen, model_of
from benchmarks.prediction.score_public import scored_with
from benchmarks.prediction.validation_page import put_between
from vllm_nfp.principle import target_of

Floats = NDArray[np.float64]
Set = Mapping[str, Any]
NEAR = 0.1
HEAD = ("part", "device", "families", "points", "family left out", "models and sizes",
        "model left out", "unseen points", "split", "folds", "ships")  # fmt: skip
"""Shares are those within 10 %."""


@dataclass(frozen=True, slots=True)
class Folded:
    """Errors of one entry.

    Attributes:
        families, models: how many are left out in turn.
        without_family, without_model: errors of all sets by the fits without them.
        unseen: the second at the sets that the split has not seen; the first if it saw none.
        split: errors there by the split's fit, or by the classes' defaults where it saw none.
    """

    fit: Fit
    families: int
    models: int
    without_family: Floats
    without_model: Floats
    unseen: Floats
    split: Floats
    otherwise: str
    """What ships if the fit to all sets does not: split or assumption."""

    @property
    def takes_all(self) -> bool:
        """Whether the fit to all sets ships."""
        return share(self.unseen) > share(self.split)

    def row(self) -> str:
        """In Markdown."""
        shown = (
            self.fit.part, self.fit.device, str(self.families), str(len(self.without_family)),
            _percent(self.without_family), str(self.models), _percent(self.without_model),
            str(len(self.unseen)), _percent(self.split), _percent(self.unseen),
            "all" if self.takes_all else self.otherwise,
        )  # fmt: skip
        return f"| {' | '.join(shown)} |"


def share(errors: Floats) -> float:
    """Of points within 10 %."""
    return float(np.mean(np.abs(errors) <= NEAR))


def _percent(errors: Floats) -> str:
    return f"{100 * share(errors):.0f} %"


def folded(fit: Fit, sets: Sequence[Set]) -> Folded | None:
    """Errors of the entry's folds and of the split; None where there is one family only."""
    scored = fit.scored(sets)
    families, models = ({key(one) for one in scored} for key in (family_of, model_of))
    if len(families) < 2:
        return None
    alike = [one for one in sets if (one["kind"], one["hardware"]) == (fit.kind, fit.device)]
    seen = [one for one in scored if is_seen(one)]
    by_split_rule = [one for one in alike if is_seen(one)]
    split = fitted(fit, by_split_rule) if seen else fit.start()
    without_family = _left_out(fit, alike, family_of)
    without_model = _left_out(fit, alike, model_of)
    unseen = [one["id"] for one in scored if not is_seen(one)]
    compared = without_model if seen else without_family
    by_split = [errors_with(fit, split, one) for one in scored if not is_seen(one)]
    return Folded(
        fit,
        len(families),
        len(models),
        np.concatenate(list(without_family.values())),
        np.concatenate(list(without_model.values())),
        np.concatenate([compared[name] for name in unseen]),
        np.concatenate(by_split),
        "split" if seen else "assumption",
    )


def _left_out(fit: Fit, alike: Sequence[Set], key: Callable[[Set], str]) -> dict[str, Floats]:
    """Errors of every set by the fit without all sets of the same key, of any type."""
    found: dict[str, Floats] = {}
    scored = fit.scored(alike)
    for left in sorted({key(one) for one in scored}):
        values = fitted(fit, [one for one in alike if key(one) != left])
        for one in (one for one in scored if key(one) == left):
            found[one["id"]] = errors_with(fit, values, one)
    return found


def errors_with(fit: Fit, values: Mapping[str, float], one: Set) -> Floats:
    """Errors of the set's t(x) / t(first x) with these constants of the part."""
    target = target_of(fit.device)
    calibration = fit.with_values(target.calibration, values)
    scored = scored_with(one, dataclasses.replace(target, calibration=calibration))
    return np.zeros(0) if scored is None else scored.errors


def table(found: Sequence[Folded]) -> str:
    """In Markdown."""
    head = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    return "\n".join([*head, *(one.row() for one in found)])


@click.command()
@click.argument("curves", type=click.Path(exists=True, path_type=Path))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=None)
def main(curves: Path, page: Path | None) -> None:
    """Score constants at families that were left out, and print the entries that ship."""
    sets = json.loads(curves.read_text(encoding="utf-8"))["sets"]
    found = [one for fit in fits() if (one := folded(fit, sets)) is not None]
    for one in found:
        seen = [each for each in sets if one.takes_all or is_seen(each)]
        if one.fit.scored(seen):
            note = "all" if one.takes_all else "split"
            entry = as_toml(one.fit.part, one.fit.device, fitted(one.fit, seen))
            click.echo(f"\n# fitted to: {note}{entry}")
    click.echo(table(found))
    if page is not None:
        put_between(page, "folds", "benchmarks.prediction.fit_folds", table(found))


if __name__ == "__main__":
    main()
