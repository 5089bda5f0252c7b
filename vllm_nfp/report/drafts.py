"""The table of draft lengths, as ``vllm-nfp recommend`` gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_nfp.draft import ScheduleRow, sources
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.results.profile import Profile


@dataclass(frozen=True, slots=True)
class DraftRow:
    """The best draft lengths of one batch size and context, one for each acceptance."""

    batch_size: int
    context: int
    choices: tuple[ScheduleRow | None, ...]
    """``recommend``'s, one for each acceptance; None where K takes more positions than are known
    here."""

    @property
    def is_between(self) -> bool:
        """Whether it comes from batch sizes around it that are far apart."""
        return any(one is not None and one.basis == "between" for one in self.choices)


@dataclass(frozen=True, slots=True)
class Drafts:
    """The table of draft lengths."""

    rows: tuple[DraftRow, ...]
    reason: str
    """Why the table is empty; empty if it has rows."""
    verdicts: tuple[tuple[float, str], ...] = ()
    """(acceptance, ``recommend``'s verdict as one text)"""

    def any_with(self, basis: str) -> bool:
        """Whether any choice has this basis; see :class:`ScheduleRow`."""
        return any(c is not None and c.basis == basis for row in self.rows for c in row.choices)


def drafts(profile: Profile, acceptances: Sequence[float]) -> Drafts:
    """``recommend``'s draft lengths for each measured batch size at each measured context."""
    if not any(row.module == "model" for row in profile.curves):
        return Drafts((), "The profile has no times of the whole step.")
    try:
        source = sources.from_profile(profile)
        found = [recommend(source, acceptance) for acceptance in acceptances]
    except SourceError as error:
        return Drafts((), f"No draft lengths: {error}.")
    cut = 0 if source.cut_layers is None else 1  # its sentence is the page's subtitle
    measured = {curve.batch_size for curve in source.curves}
    chosen = [{(row.context, row.batch_size_first): row for row in one.rows} for one in found]
    cells = sorted({cell for one in chosen for cell in one if cell[1] in measured})
    return Drafts(
        tuple(
            DraftRow(batch_size, context, tuple(one.get((context, batch_size)) for one in chosen))
            for context, batch_size in cells
        ),
        "",
        tuple(
            (acceptance, " ".join(f"{sentence}." for sentence in one.verdict[cut:]))
            for acceptance, one in zip(acceptances, found, strict=True)
        ),
    )
